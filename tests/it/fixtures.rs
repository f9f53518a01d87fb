//! What many tests begin with: nodes with the usual configuration, messages in a room, a metric. Called by all test
//! modules; it asserts nothing about the gateway.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use fanfare_tests::wait::{eventually, within};
use fanfare_tests::{Client, Cluster, http, prometheus};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Makes a test `MODULE::NAME` of each function for each list of arguments: `MODULE(ARGUMENTS), …: NAME, …`. The functions
/// are known in the module of the call.
macro_rules! for_each {
    ($($module:ident $arguments:tt),+ : $($name:ident),+ $(,)?) => {
        for_each! { @modules [$($module $arguments)+] [$($name)+] }
    };
    (@modules [$($module:ident $arguments:tt)+] $names:tt) => {
        $( for_each! { @tests $module $arguments $names } )+
    };
    (@tests $module:ident $arguments:tt [$($name:ident)+]) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name $arguments.await;
                }
            )+
        }
    };
}

/// A configuration without a limit on the rate of publishes.
pub(crate) const NO_RATE: &str = "[limits]\npublishes_per_second = 0\n";

/// One node with the embedded broker and the default configuration.
pub(crate) async fn one_node() -> Cluster {
    Cluster::embedded().start().await
}

/// One node with the embedded broker and this configuration file.
pub(crate) async fn one_node_with(config: &str) -> Cluster {
    Cluster::embedded().config(config).start().await
}

/// One node and a client of it.
pub(crate) async fn node_and_client() -> (Cluster, Client) {
    let cluster = one_node().await;
    let client = Client::connect(cluster.address(0)).await;
    (cluster, client)
}

/// Publishes `count` numbers, beginning with `first`, to a room by HTTP and in batches. Returns the cursor of the last one.
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

/// A metric of the node with this operators' listener, summed over its labels.
pub(crate) async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let text = http::get(admin, "/metrics").send().await.text;
    prometheus::parse(&text).expect("a valid scrape").sum(name)
}

/// A publish whose body is unfinished. It keeps a draining node from ending for up to 10 s, the time limit of a request.
pub(crate) struct UnfinishedPublish(BufReader<TcpStream>);

impl UnfinishedPublish {
    /// Sends the head; returns when the node has asked for the body.
    pub(crate) async fn begin(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("a listener");
        let head = "POST /v1/rooms/unfinished HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                    Content-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        let mut begun = Self(BufReader::new(stream));
        assert_eq!(begun.line().await, "HTTP/1.1 100 Continue\r\n");
        begun
    }

    /// Sends the body and returns the status line of the answer.
    pub(crate) async fn finish(mut self) -> String {
        self.0.write_all(b"1").await.expect("the body is taken");
        assert_eq!(self.line().await, "\r\n", "the first answer has no headers");
        self.line().await
    }

    /// What comes until the connection ends, without the body ever being sent.
    pub(crate) async fn rest(mut self) -> String {
        let mut text = String::new();
        // A reset is an end too.
        let _ = within("the end of the connection", self.0.read_to_string(&mut text)).await;
        text.trim().to_owned()
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        within("a line", self.0.read_line(&mut line)).await.expect("an answer");
        line
    }
}

/// Waits until a counter has grown by this many.
pub(crate) async fn counts_up(counter: &AtomicU64, by: u64) {
    let so_far = counter.load(Ordering::Relaxed);
    eventually("the counter has grown", async || counter.load(Ordering::Relaxed) >= so_far + by).await;
}

/// The epoch and the offset of a cursor.
pub(crate) fn split(cursor: &Value) -> (String, u64) {
    let text = cursor.as_str().unwrap_or_else(|| panic!("no cursor: {cursor}"));
    let (epoch, offset) = text.split_once('.').unwrap_or_else(|| panic!("no cursor: {text}"));
    (epoch.to_owned(), offset.parse().unwrap_or_else(|_| panic!("no cursor: {text}")))
}
