//! A real `redis-server` without persistence on a port of its own. Called by `cluster` and the tests that break the
//! backplane; it never uses a Redis it did not start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::wait::{eventually, within};

/// One Redis; ends with this.
#[derive(Debug)]
pub struct Redis {
    address: SocketAddr,
    launch: Launch,
    process: Process,
    directory: PathBuf,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub async fn start(directory: &Path) -> Self {
        let port = free_port();
        let launch = Launch::new("redis", "redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory);
        let process = launch.start(directory);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let redis = Self { address, launch, process, directory: directory.to_owned() };
        redis.answers().await;
        redis
    }

    /// What gateways are told.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills it with SIGKILL: connections break, nothing is saved.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, with nothing in it.
    pub async fn start_empty(&mut self) {
        self.process = self.launch.start(&self.directory);
        self.answers().await;
    }

    /// Stops it from answering without closing a connection, or lets it go on.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// The first line of the answer to an inline command.
    ///
    /// # Panics
    /// When Redis is not there.
    pub async fn command(&self, command: &str) -> String {
        within(command, self.try_command(command)).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    async fn answers(&self) {
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
