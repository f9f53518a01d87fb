//! Gateways as processes: one with the embedded broker, or several over one Redis. Called by every test that needs
//! a server; it never reuses a process of another test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;

use crate::process::{Launch, Process};
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::wait::eventually;

/// The gateway under test: `FANFARE_BIN`, or the `fanfare` that cargo built beside this test.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FANFARE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let directory = test.ancestors().nth(2).expect("a test stands in target/<profile>/deps");
    let path = directory.join("fanfare");
    assert!(path.exists(), "no {}: build it first, or set FANFARE_BIN", path.display());
    path
}

/// What is to be started.
#[derive(Debug)]
pub struct Plan {
    nodes: usize,
    over_redis: bool,
    config: Option<String>,
    flags: Vec<String>,
    drain_s: u32,
}

/// The running nodes, and what they stand on. Dropping it ends all of them.
#[derive(Debug)]
pub struct Cluster {
    /// In the order in which they were started: `a`, `b`, …
    pub nodes: Vec<Node>,
    redis: Option<Redis>,
    scratch: Scratch,
}

/// One gateway process.
#[derive(Debug)]
pub struct Node {
    /// `a`, `b`, …: what `welcome` says.
    pub name: String,
    /// The public listener.
    pub listen: SocketAddr,
    /// The operators' listener.
    pub admin: SocketAddr,
    process: Process,
}

/// What stands in the ready file.
#[derive(Deserialize)]
struct Ready {
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Cluster {
    /// One node with the embedded broker.
    #[must_use]
    pub fn embedded() -> Plan {
        Plan { nodes: 1, over_redis: false, config: None, flags: Vec::new(), drain_s: 2 }
    }

    /// `nodes` nodes over one Redis.
    #[must_use]
    pub fn over_redis(nodes: usize) -> Plan {
        Plan { nodes, over_redis: true, config: None, flags: Vec::new(), drain_s: 2 }
    }

    /// The public address of a node; indices wrap around.
    #[must_use]
    pub fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index % self.nodes.len()].listen
    }

    /// The Redis below.
    ///
    /// # Panics
    /// When the cluster has the embedded broker.
    pub fn redis(&mut self) -> &mut Redis {
        self.redis.as_mut().expect("this cluster has a Redis")
    }

    /// The directory of its files.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }
}

impl Plan {
    /// The TOML file every node gets.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// More flags for every node.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// The window over which SIGTERM spreads its closes; 2 s unless told.
    #[must_use]
    pub fn drain(mut self, seconds: u32) -> Self {
        self.drain_s = seconds;
        self
    }

    /// Starts everything and returns once all nodes serve.
    ///
    /// # Panics
    /// When something does not come up in time.
    pub async fn start(self) -> Cluster {
        let scratch = Scratch::new();
        let redis = if self.over_redis { Some(Redis::start(scratch.path()).await) } else { None };
        let config = self.config.as_ref().map(|toml| scratch.file("fanfare.toml", toml));
        let mut nodes = Vec::new();
        for index in 0..self.nodes {
            let mut launch = serve(&scratch, &node_name(index)).args(&self.flags);
            launch = launch.arg("--drain").arg(self.drain_s.to_string());
            if let Some(redis) = &redis {
                launch = launch.arg("--redis").arg(redis.url());
            }
            if let Some(config) = &config {
                launch = launch.arg("--config").arg(config);
            }
            nodes.push((node_name(index), launch.start(scratch.path())));
        }
        let mut ready = Vec::new();
        for (name, process) in nodes {
            ready.push(Node::ready(name, process, &scratch).await);
        }
        Cluster { nodes: ready, redis, scratch }
    }
}

/// `fanfare serve` on free ports of the loopback, with a ready file in `scratch`.
#[must_use]
pub fn serve(scratch: &Scratch, name: &str) -> Launch {
    Launch::new(name, binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "2", "--log", "text"])
        .args(["--node", name, "--ready-file"])
        .arg(scratch.path().join(format!("{name}.ready")))
}

/// `a`, `b`, `c`, …
fn node_name(index: usize) -> String {
    let letter = u8::try_from(index).expect("a test has few nodes") + b'a';
    char::from(letter).to_string()
}

impl Node {
    /// Waits until the process says that it serves.
    ///
    /// # Panics
    /// When it ends, or does not serve in time.
    pub async fn ready(name: String, mut process: Process, scratch: &Scratch) -> Self {
        let file = scratch.path().join(format!("{name}.ready"));
        let mut ready = None;
        eventually(&format!("node {name} serves"), async || {
            assert!(process.is_running(), "node {name} ended while starting: {}", process.log());
            ready = std::fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str::<Ready>(&text).ok());
            ready.is_some()
        })
        .await;
        let Ready { listen, admin } = ready.expect("the condition was that there is one");
        Self { name, listen, admin, process }
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM: the drain begins.
    pub fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Its exit status, within `limit`.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.exit(limit).await
    }
}
