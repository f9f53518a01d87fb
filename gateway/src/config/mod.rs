//! What the operator decides. [`load`] puts the configuration together from its layers — defaults, file, environment,
//! flags, the later the stronger — and reports everything that is wrong with any of them at once. `cli` calls it, `app`
//! hands its parts to the modules. It reads one file and never opens a socket, and nothing in it changes after the start.

mod environment;
mod fault;
mod file;
mod options;
mod reference;
mod sections;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use crate::policy::{origin::Origin, peer::Network};
pub(crate) use environment::Environment;
pub(crate) use fault::Faults;
pub(crate) use options::{Kind, Spec, all as options};
pub(crate) use value::{LogFormat, LogLevel, RedisUrl};

use crate::policy::{class::Classes, limits::Limits};
use fault::Place;
use options::{CONFIG_FILE, Draft, OPTIONS};
use std::{
    collections::BTreeMap,
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
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
    /// Where to write the bound addresses once they are served.
    pub(crate) ready_file: Option<PathBuf>,
    /// The Redis servers; none: the embedded broker.
    pub(crate) redis: Vec<RedisUrl>,
    /// Who vouches for Redis over TLS; `None`: the public authorities.
    pub(crate) redis_ca_file: Option<PathBuf>,
    /// How long Redis may take to be there at start.
    pub(crate) redis_wait: Duration,
    /// This node's name.
    pub(crate) node: String,
    /// Where nginx reaches this node; `None`: to be derived from the bound listener.
    pub(crate) advertise: Option<SocketAddr>,
    /// Threads that own connections.
    pub(crate) shards: usize,
    /// How log lines, which go to standard error, are written.
    pub(crate) log: LogFormat,
    /// Which lines are logged.
    pub(crate) log_level: LogLevel,
    /// The window over which a drain closes connections.
    pub(crate) drain: Duration,
    /// Whether a lost backplane makes the node unready.
    pub(crate) ready_needs_backplane: bool,
    /// Whether the demo pages are served.
    pub(crate) demo: bool,
    /// Origins of web pages that may connect; none: those of the listener itself.
    pub(crate) origins: Vec<Origin>,
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<Network>,
    /// What rooms are like.
    pub(crate) classes: Classes,
    /// How much anybody may use.
    pub(crate) limits: Limits,
}

impl Config {
    /// Every Redis, in the form in which the broker takes several.
    pub(crate) fn redis_urls(&self) -> String {
        self.redis.iter().map(RedisUrl::expose).collect::<Vec<_>>().join(",")
    }

    /// What holds where nothing is set.
    pub(crate) fn built_in() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            ready_file: None,
            redis: Vec::new(),
            redis_ca_file: None,
            redis_wait: Duration::ZERO,
            node: node_name(),
            advertise: None,
            shards: thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256),
            log: if terminal { LogFormat::Text } else { LogFormat::Json },
            log_level: LogLevel::Info,
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

/// Values given on the command line, by the option's name; elements of a list are separated by blanks.
pub(crate) type Flags = BTreeMap<&'static str, String>;

/// Puts the configuration together.
///
/// # Errors
/// Every fault of every layer, in the order file, environment, flags, and last what only shows when all are known.
pub(crate) fn load(flags: &Flags, environment: &Environment) -> Result<Config, Faults> {
    let mut draft = Draft::new(Config::built_in());
    override_with(&[CONFIG_FILE], flags, environment, &mut draft);
    let complete = draft.file.clone().is_none_or(|path| file::read(&path, &mut draft));
    environment.check(&mut draft.faults);
    override_with(OPTIONS, flags, environment, &mut draft);
    if complete {
        check_together(&mut draft);
    }
    draft.faults.none_or(draft.config)
}

/// What `serve --config FILE` would find wrong.
///
/// # Errors
/// Every fault, as in [`load`].
pub(crate) fn check(file: &Path, environment: &Environment) -> Result<(), Faults> {
    let flags = Flags::from([(CONFIG_FILE.name, file.to_string_lossy().into_owned())]);
    load(&flags, environment).map(drop)
}

/// The text of docs/configuration.md.
pub(crate) fn reference() -> String {
    reference::markdown()
}

/// Environment, then flags.
fn override_with(specs: &[Spec], flags: &Flags, environment: &Environment, draft: &mut Draft) {
    for spec in specs {
        if let Some((text, place)) = environment.option(spec) {
            draft.take(spec, text, place);
        }
        if let Some(text) = flags.get(spec.name) {
            draft.take(spec, text, Place::Flag(spec.flag()));
        }
    }
}

/// Faults of values that are good one by one and not together.
fn check_together(draft: &mut Draft) {
    let Config { listen, limits, .. } = &draft.config;
    let place = |names: &[&str]| {
        let place = names.iter().find_map(|name| draft.places.get(name));
        place.map_or_else(|| names.join(", "), Place::to_string)
    };
    let mut faults = Faults::default();
    if !listen.ip().is_loopback() && !draft.open {
        let problem = format_args!(
            "{listen} is not loopback, and anonymous access is the default on loopback only: \
             allow it with --open, FANFARE_OPEN=true or open = true"
        );
        faults.add(place(&["listen"]), problem);
    }
    if !draft.config.redis.is_empty()
        && let Err(why) = fanfare_broker::redis::Config::parse(&draft.config.redis_urls())
    {
        faults.add(place(&["redis"]), why);
    }
    // One message of the largest size has to fit, with what the frame puts around its data: cursor, names, time.
    let frame = limits.message_bytes + 4096;
    if limits.outbox_bytes < frame {
        let problem = format_args!("outbox_bytes must be at least message_bytes + 4096 = {frame}");
        faults.add(place(&["outbox_bytes", "message_bytes"]), problem);
    }
    if limits.outbox_total_bytes != 0 && limits.outbox_total_bytes < limits.outbox_bytes {
        let problem = format_args!("outbox_total_bytes must be 0 or at least outbox_bytes = {}", limits.outbox_bytes);
        faults.add(place(&["outbox_total_bytes", "outbox_bytes"]), problem);
    }
    draft.faults.append(faults);
}

/// The host's name, a dash and four random characters: a restart is another node.
fn node_name() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // 59 = the longest node name (64) less what is appended.
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
