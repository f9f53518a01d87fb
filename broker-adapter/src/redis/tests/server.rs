//! `Server`: a real Redis server for one test, on a free port of the loopback and in its own directory. Ends with the
//! test.

use crate::redis::RedisConfig;
use redis::{FromRedisValue, RedisResult, Value};
use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

/// A Redis server that ends with the test.
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) dir: PathBuf,
    process: Option<Child>,
    more: Vec<String>,
}

/// The first port, and how many there are. Outgoing connections have the ports from 32768 upward, the whole-process
/// tests those from 20000 on. A block is more than one run of these tests asks for.
const FIRST: u16 = 10_000;
const BLOCK: u16 = 1_000;
const BLOCKS: u16 = 10;

/// A free port of the loopback. No other process takes it while its server is restarted: each test process has a block
/// of its own, whose lock file is locked until the process ends.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static OWN: OnceLock<(u16, File)> = OnceLock::new();
    let (block, _) = OWN.get_or_init(|| {
        let lock = |block: u16| {
            let file = File::create(std::env::temp_dir().join(format!("fanfare-broker-ports-{block}.lock"))).ok()?;
            file.try_lock().ok()?;
            Some((block, file))
        };
        (0..BLOCKS).find_map(lock).expect("a block of ports that no other test process has")
    });
    let ports = std::iter::repeat_with(|| FIRST + BLOCK * block + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK);
    ports.take(BLOCK.into()).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// Starts a server with more options. `more` may write files into the server's directory, and name them.
    pub(super) async fn start_with(more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let port = free_port();
        let dir = std::env::temp_dir().join(format!("fanfare-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let more = more(&dir);
        let mut server = Self { port, dir, process: None, more };
        server.run().await;
        server
    }

    /// Starts the server again; it loads what the last one has saved.
    pub(super) async fn run(&mut self) {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--dir", self.dir.to_str().unwrap()])
            .args(&self.more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        super::until("Redis to start", Duration::from_secs(20), || async {
            self.client().get_multiplexed_async_connection().await.is_ok()
        })
        .await;
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(super) fn config(&self) -> RedisConfig {
        RedisConfig::parse(&self.url()).unwrap()
    }

    fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    /// Runs a command whose words are separated by spaces.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        self.try_ask(command).await.unwrap()
    }

    /// As [`Server::ask`], but may fail: a server that becomes a master or a replica cuts its connections.
    pub(super) async fn try_ask<T: FromRedisValue>(&self, command: &str) -> RedisResult<T> {
        let mut conn = self.client().get_multiplexed_async_connection().await?;
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        cmd.arg(words.collect::<Vec<_>>());
        cmd.query_async(&mut conn).await
    }

    /// Runs a Lua script of a test.
    pub(super) async fn eval(&self, script: &str, keys: &[String]) {
        let mut conn = self.client().get_multiplexed_async_connection().await.unwrap();
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(script).arg(keys.len()).arg(keys);
        let _: Value = cmd.query_async(&mut conn).await.unwrap();
    }

    /// Runs a command and drops its reply.
    pub(super) async fn command(&self, command: &str) {
        let _: Value = self.ask(command).await;
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops the process; its connections stay open.
    pub(super) fn stall(&self) {
        self.signal("-STOP");
    }

    pub(super) fn wake(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
