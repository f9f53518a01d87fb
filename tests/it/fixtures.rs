//! What many tests begin with: nodes with the configuration most sentences need. Called by all test modules; it
//! never asserts anything about the gateway.

use std::net::SocketAddr;

use fanfare_tests::wait::within;
use fanfare_tests::{Client, Cluster, http};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Publishes as fast as a test likes.
pub(crate) const NO_RATE: &str = "[limits]\npublishes_per_second = 0\n";

/// One node with the embedded broker and the default configuration.
pub(crate) async fn one_node() -> Cluster {
    Cluster::embedded().start().await
}

/// One node with the embedded broker and a configuration file.
pub(crate) async fn one_node_with(config: &str) -> Cluster {
    Cluster::embedded().config(config).start().await
}

/// One node and a client of it.
pub(crate) async fn node_and_client() -> (Cluster, Client) {
    let cluster = one_node().await;
    let client = Client::connect(cluster.address(0)).await;
    (cluster, client)
}

/// Publishes `count` numbers from `first` on to a room by HTTP, in batches, and returns the cursor of the last.
pub(crate) async fn publish_numbers(cluster: &Cluster, room: &str, first: usize, count: usize) -> String {
    let mut last = String::new();
    let numbers: Vec<usize> = (first..first + count).collect();
    for batch in numbers.chunks(100) {
        let items: Vec<Value> = batch.iter().map(|n| json!({"room": room, "data": n})).collect();
        let reply = http::post(cluster.address(0), "/v1/publish", &json!(items)).send().await.expect(200);
        let cursor = reply.as_array().and_then(|items| items.last()).map(|item| item["cursor"].clone());
        last = cursor.as_ref().and_then(Value::as_str).expect("each publish is acknowledged with a cursor").to_owned();
    }
    last
}

/// A publish whose body is not finished: a draining node waits for it, for the 10 s that a request may take.
pub(crate) struct UnfinishedPublish(BufReader<TcpStream>);

impl UnfinishedPublish {
    /// Sends all but the body; returns when the node waits for that.
    pub(crate) async fn begin(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("a listener");
        let head = "POST /v1/rooms/unfinished HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                    Content-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        let mut begun = Self(BufReader::new(stream));
        assert_eq!(begun.line().await, "HTTP/1.1 100 Continue\r\n");
        begun
    }

    /// Sends the body; the status line of the answer.
    pub(crate) async fn finish(mut self) -> String {
        self.0.write_all(b"1").await.expect("the body is taken");
        assert_eq!(self.line().await, "\r\n", "the first answer has no headers");
        self.line().await
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        within("a line", self.0.read_line(&mut line)).await.expect("an answer");
        line
    }
}

/// `epoch` and `offset` of a cursor.
pub(crate) fn split(cursor: &Value) -> (String, u64) {
    let text = cursor.as_str().unwrap_or_else(|| panic!("no cursor: {cursor}"));
    let (epoch, offset) = text.split_once('.').unwrap_or_else(|| panic!("no cursor: {text}"));
    (epoch.to_owned(), offset.parse().unwrap_or_else(|_| panic!("no cursor: {text}")))
}
