//! A real `redis-server` without persistence on a port of its own. Called by `cluster` and the tests that break the
//! backplane. It starts its own server and never touches another one.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::resp;
use crate::wait::{eventually, within};

/// One running Redis; dropping it ends the process.
#[derive(Debug)]
pub struct Redis {
    address: SocketAddr,
    process: Process,
}

/// A copy of a Redis's data, from which it can be started later.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<u8>);

/// The file to which Redis saves its data and from which it loads them at the start.
const SNAPSHOT: &str = "dump.rdb";

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// If it does not answer in time.
    pub async fn start(directory: &Path) -> Self {
        Self::start_as("redis", directory, &[]).await
    }

    /// Starts one with additional arguments. It keeps its files in `directory`, with a log called `name`.
    ///
    /// # Panics
    /// If it does not answer in time.
    pub async fn start_as(name: &str, directory: &Path, args: &[&str]) -> Self {
        let port = free_port();
        let launch = Launch::new(name, "redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory)
            .args(args);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let redis = Self { address, process: launch.start(directory) };
        redis.wait_until_it_answers().await;
        redis
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value of a gateway's `--redis`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills it with SIGKILL: connections break, nothing is saved.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port without data.
    pub async fn start_empty(&mut self) {
        let _ = std::fs::remove_file(self.process.file(SNAPSHOT));
        self.process.start_again();
        self.wait_until_it_answers().await;
    }

    /// Starts it again on the same port with the data of the snapshot.
    ///
    /// # Panics
    /// If the snapshot cannot be written.
    pub async fn start_from(&mut self, snapshot: &Snapshot) {
        std::fs::write(self.process.file(SNAPSHOT), &snapshot.0).expect("the snapshot's file can be written");
        self.process.start_again();
        self.wait_until_it_answers().await;
    }

    /// A copy of its data now.
    ///
    /// # Panics
    /// If Redis cannot save them.
    pub async fn snapshot(&self) -> Snapshot {
        assert_eq!(self.command("SAVE").await, "+OK");
        Snapshot(std::fs::read(self.process.file(SNAPSHOT)).expect("SAVE has written a file"))
    }

    /// Its resident memory; `None` once it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.process.resident_bytes()
    }

    /// Sends a signal: `STOP` makes it hang with its connections open, `CONT` lets it continue.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// The first line of the reply to an inline command.
    ///
    /// # Panics
    /// If Redis does not reply.
    pub async fn command(&self, command: &str) -> String {
        within(command, self.try_command(command)).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// All values of the reply to an inline command; none if Redis does not reply.
    pub async fn values(&self, command: &str) -> Vec<String> {
        within(command, resp::ask(self.address, command)).await.unwrap_or_default()
    }

    async fn wait_until_it_answers(&self) {
        eventually("redis answers", async || {
            self.try_command("PING").await.is_ok_and(|answer| answer.starts_with("+PONG"))
        })
        .await;
    }

    async fn try_command(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    }
}
