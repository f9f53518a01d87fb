//! Everything an operator can set, and what holds where nothing is set. `load` fills it; `app` hands its parts to the
//! modules. Nothing in it changes after the start.

use super::value::{self, LogFormat, RedisUrl};
use crate::policy::{class::Classes, limits::Limits, origin::Origin, peer::Network};
use std::{
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

/// Everything an operator can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The public listener.
    pub(crate) listen: SocketAddr,
    /// The admin listener.
    pub(crate) admin: SocketAddr,
    /// The file that gets the bound addresses once the node serves.
    pub(crate) ready_file: Option<PathBuf>,
    /// The Redis servers; empty: the embedded broker.
    pub(crate) redis: Vec<RedisUrl>,
    /// Certificates of the authorities for Redis over TLS; `None`: the public ones.
    pub(crate) redis_ca_file: Option<PathBuf>,
    /// How long to wait for Redis at start.
    pub(crate) redis_wait: Duration,
    /// The beginning of all keys and channels in Redis.
    pub(crate) redis_prefix: String,
    /// This node's name.
    pub(crate) node: String,
    /// The address under which nginx reaches this node; `None`: derived from the bound listener.
    pub(crate) advertise: Option<SocketAddr>,
    /// Threads that own connections.
    pub(crate) shards: usize,
    /// The form of log lines, which go to standard error.
    pub(crate) log: LogFormat,
    /// The least important lines that are logged.
    pub(crate) log_level: tracing::Level,
    /// The window over which a drain closes connections.
    pub(crate) drain: Duration,
    /// Whether a lost backplane makes the node unready.
    pub(crate) ready_needs_backplane: bool,
    /// Whether the demo pages are served.
    pub(crate) demo: bool,
    /// Origins of web pages that may connect, beside those that the gateway serves itself.
    pub(crate) origins: Vec<Origin>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<Network>,
    /// Rules for rooms.
    pub(crate) classes: Classes,
    /// How much a client, an address and the node may use.
    pub(crate) limits: Limits,
}

impl Config {
    /// All Redis URLs as one text, which is how the broker takes several.
    pub(crate) fn redis_urls(&self) -> String {
        self.redis.iter().map(RedisUrl::expose).collect::<Vec<_>>().join(",")
    }

    /// The defaults.
    pub(crate) fn built_in() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            ready_file: None,
            redis: Vec::new(),
            redis_ca_file: None,
            redis_wait: Duration::ZERO,
            redis_prefix: "fanfare".to_owned(),
            node: node_name(),
            advertise: None,
            shards: thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256),
            log: if terminal { LogFormat::Text } else { LogFormat::Json },
            log_level: tracing::Level::INFO,
            drain: Duration::from_secs(20),
            ready_needs_backplane: false,
            demo: true,
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            classes: Classes::default(),
            limits: Limits::default(),
        }
    }
}

/// The host's name, a dash and four random characters, so that a restarted node has another name.
pub(super) fn node_name() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // 59 = the longest node name (64) less the five characters that are appended.
    let mut name: String =
        host.trim().bytes().take(59).map(|b| if value::is_name_byte(b) { char::from(b) } else { '-' }).collect();
    if name.is_empty() {
        name.push_str("node");
    }
    name.push('-');
    let random = getrandom::u32().unwrap_or_else(|_| std::process::id());
    name.extend((0..4).map(|i| char::from(ALPHABET[(random >> (5 * i)) as usize % ALPHABET.len()])));
    name
}
