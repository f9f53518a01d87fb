//! Gateways as processes: one with the embedded broker, or several that share a Redis. Called by every test that needs
//! a server. Each cluster has its own processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::wait::{eventually, within};

/// The gateway under test: `FANFARE_BIN`, or the `fanfare` that cargo has built with the profile of this program.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    std::env::var_os("FANFARE_BIN").map_or_else(|| BUILT.get_or_init(built).clone(), PathBuf::from)
}

/// A test stands in `<build directory>/<profile>/deps`, a program in `<target directory>/<profile>`. The two directories
/// are one, unless `CARGO_BUILD_BUILD_DIR` or a configuration parts them: then cargo knows the second one.
fn built() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows its own path");
    let mut directory = this.parent().expect("a program stands in a directory");
    if directory.ends_with("deps") {
        directory = directory.parent().expect("deps stands in <profile>");
    }
    let beside = directory.join("fanfare");
    if beside.exists() {
        return beside;
    }
    let profile = directory.file_name().expect("a profile's directory has its name");
    let path = target_directory().join(profile).join("fanfare");
    assert!(path.exists(), "no {}: build it first (cargo build -p fanfare), or set FANFARE_BIN", path.display());
    path
}

fn target_directory() -> PathBuf {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut asks = Command::new(cargo);
    asks.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let said = asks.output().expect("cargo can be run");
    let metadata = serde_json::from_slice::<Metadata>(&said.stdout);
    metadata.unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&said.stderr))).target_directory
}

/// The settings of a cluster that is about to be started.
#[derive(Debug)]
pub struct Plan {
    nodes: usize,
    backplane: Backplane,
    config: Option<String>,
    flags: Vec<String>,
    drain_s: u32,
}

/// How the nodes of a plan are connected.
#[derive(Debug)]
enum Backplane {
    /// One node with the embedded broker.
    Embedded,
    /// A Redis that is started with the cluster.
    OwnRedis,
    /// Redis addresses given by the caller; the nodes use them in turn.
    Addresses(Vec<String>),
}

/// The running nodes and the Redis that the cluster started for them. Dropping it ends all processes.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes in the order in which they were started: `a`, `b`, …
    pub nodes: Vec<Node>,
    redis: Option<Redis>,
    scratch: Scratch,
}

/// One gateway process.
#[derive(Debug)]
pub struct Node {
    /// `a`, `b`, …; `welcome` contains it as `node`.
    pub name: String,
    /// The public listener.
    pub listen: SocketAddr,
    /// The listener for operators.
    pub admin: SocketAddr,
    process: Process,
}

/// The content of the ready file.
#[derive(Deserialize)]
struct Ready {
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Cluster {
    /// One node with the embedded broker.
    #[must_use]
    pub fn embedded() -> Plan {
        Plan::new(1, Backplane::Embedded)
    }

    /// `nodes` nodes that share a Redis.
    #[must_use]
    pub fn over_redis(nodes: usize) -> Plan {
        Plan::new(nodes, Backplane::OwnRedis)
    }

    /// `nodes` nodes that get these addresses in turn as `--redis`: fault proxies, Sentinels, or a Redis that the caller
    /// started.
    #[must_use]
    pub fn over_addresses(nodes: usize, addresses: Vec<String>) -> Plan {
        Plan::new(nodes, Backplane::Addresses(addresses))
    }

    /// The public address of a node; indices wrap around.
    #[must_use]
    pub fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index % self.nodes.len()].listen
    }

    /// The Redis that was started with the cluster.
    ///
    /// # Panics
    /// If the cluster was started without one.
    pub fn redis(&mut self) -> &mut Redis {
        self.redis.as_mut().expect("this cluster has a Redis of its own")
    }

    /// The directory of its files.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }
}

impl Plan {
    fn new(nodes: usize, backplane: Backplane) -> Self {
        Self { nodes, backplane, config: None, flags: Vec::new(), drain_s: 2 }
    }

    /// The content of the configuration file of every node (TOML).
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// Additional flags for every node.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// The time over which a node spreads its closes after SIGTERM; 2 s by default.
    #[must_use]
    pub fn drain(mut self, seconds: u32) -> Self {
        self.drain_s = seconds;
        self
    }

    /// Starts everything and returns once all nodes serve.
    ///
    /// # Panics
    /// If something does not come up in time.
    pub async fn start(self) -> Cluster {
        let scratch = Scratch::new();
        let (redis, addresses) = match self.backplane {
            Backplane::Embedded => (None, Vec::new()),
            Backplane::OwnRedis => {
                let redis = Redis::start(scratch.path()).await;
                let addresses = vec![redis.url()];
                (Some(redis), addresses)
            }
            Backplane::Addresses(addresses) => (None, addresses),
        };
        let config = self.config.as_ref().map(|toml| scratch.file("fanfare.toml", toml));
        let mut nodes = Vec::new();
        for index in 0..self.nodes {
            let mut launch = serve(&scratch, &node_name(index)).args(&self.flags);
            launch = launch.arg("--drain").arg(self.drain_s.to_string());
            if let Some(address) = addresses.get(index % addresses.len().max(1)) {
                launch = launch.arg("--redis").arg(address);
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

/// `fanfare serve` on free loopback ports, with a ready file in `scratch`. The ports are chosen here so that a node has
/// the same addresses after a restart.
#[must_use]
pub fn serve(scratch: &Scratch, name: &str) -> Launch {
    Launch::new(name, binary())
        .args(["serve", "--shards", "2", "--log", "text"])
        .args(["--listen", &format!("127.0.0.1:{}", free_port()), "--admin", &format!("127.0.0.1:{}", free_port())])
        .args(["--node", name, "--ready-file"])
        .arg(scratch.path().join(format!("{name}.ready")))
}

/// `a`, `b`, `c`, …
fn node_name(index: usize) -> String {
    let letter = u8::try_from(index).expect("a test has few nodes") + b'a';
    char::from(letter).to_string()
}

impl Node {
    /// Waits until the process has written its ready file.
    ///
    /// # Panics
    /// If it ends, or does not serve in time.
    pub async fn ready(name: String, mut process: Process, scratch: &Scratch) -> Self {
        let file = scratch.path().join(format!("{name}.ready"));
        let Ready { listen, admin } = wait_until_ready(&name, &mut process, &file).await;
        Self { name, listen, admin, process }
    }

    /// Starts it again after it has ended, with the same flags and ports, and waits until it serves.
    ///
    /// # Panics
    /// If it does not serve in time.
    pub async fn restart(&mut self) {
        let file = self.process.file(&format!("{}.ready", self.name));
        let _ = std::fs::remove_file(&file);
        self.process.start_again();
        wait_until_ready(&self.name, &mut self.process, &file).await;
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Has it write more lines than a pipe (64 KiB) and its queue of lines (4,096) take together, if its log has the level
    /// `debug`: one for each connection with a malformed request.
    ///
    /// # Panics
    /// If it does not take a connection.
    pub async fn fill_log(&self) {
        for _ in 0..6_000 {
            let mut connection = TcpStream::connect(self.listen).await.expect("a listener");
            connection.write_all(b"nonsense\r\n\r\n").await.expect("the listener takes bytes");
            let _ = within("the end of a malformed request", connection.read_to_end(&mut Vec::new())).await;
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends a signal: `STOP` makes it hang with its connections open, `CONT` lets it continue.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Its resident memory; `None` once it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.process.resident_bytes()
    }

    /// Begins its drain with SIGTERM.
    pub fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Waits until it has ended and returns its exit status; panics after `limit`.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.exit(limit).await
    }
}

/// Waits until a starting process has written its ready file.
async fn wait_until_ready(name: &str, process: &mut Process, file: &Path) -> Ready {
    let mut ready = None;
    eventually(&format!("node {name} serves"), async || {
        assert!(process.is_running(), "node {name} ended during its start: {}", process.log());
        ready = std::fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Ready>(&text).ok());
        ready.is_some()
    })
    .await;
    ready.expect("the condition was that the file is there")
}
