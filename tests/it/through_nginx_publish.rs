//! Publishes over HTTP through a real nginx, with both of the repository's configurations, while nodes end: what nginx
//! may send to a second node, and what it may not. `through_nginx` has the same faults for members.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_tests::dns::Dns;
use fanfare_tests::http::{self, Call};
use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::ports::free_port;
use fanfare_tests::wait::{eventually, patient};
use fanfare_tests::{Cluster, crowd::KEEP_ALL};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::fixtures::{counts_up, split};

/// How many requests a test sends, so that nginx begins with each of its nodes several times.
const REQUESTS: usize = 12;

/// A server that reads a request to its end. Then it replies, or closes the connection as a node does that dies.
struct FakeNode {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    dies: watch::Sender<bool>,
}

/// What a fake node does with a request.
#[derive(Clone)]
enum Behaviour {
    Reply,
    /// Dies once this is true.
    Die(watch::Receiver<bool>),
}

/// A request as the node read it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    /// Method and address.
    line: String,
    body: String,
}

impl FakeNode {
    async fn replying(address: impl Into<SocketAddr>) -> Self {
        Self::start(address.into(), |_| Behaviour::Reply).await
    }

    /// It holds the requests until [`FakeNode::die`].
    async fn dying(address: impl Into<SocketAddr>) -> Self {
        Self::start(address.into(), Behaviour::Die).await
    }

    async fn start(address: SocketAddr, behaviour: impl Fn(watch::Receiver<bool>) -> Behaviour) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let dies = watch::Sender::new(false);
        let (seen, behaviour) = (Arc::clone(&requests), behaviour(dies.subscribe()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, behaviour.clone(), Arc::clone(&seen)));
            }
        });
        Self { address, requests, dies }
    }

    fn die(&self) {
        self.dies.send_replace(true);
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test panics with it").clone()
    }
}

/// One request, one reply, one connection.
async fn serve(mut stream: TcpStream, behaviour: Behaviour, seen: Arc<Mutex<Vec<Request>>>) -> std::io::Result<()> {
    let mut text = String::new();
    let (head, body) = loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break (head, body);
        }
    };
    let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    seen.lock().expect("no test panics with it").push(Request { line, body: body.to_owned() });
    match behaviour {
        Behaviour::Reply => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await
        }
        Behaviour::Die(mut dies) => {
            let _ = dies.wait_for(|dies| *dies).await;
            Ok(())
        }
    }
}

/// nginx before three addresses: nothing listens on the first, the second node dies on every request, the third
/// replies.
async fn one_good_node_behind(version: Version) -> (FakeNode, FakeNode, Nginx) {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let address = || ([127, 0, 0, 1], free_port());
    let (dying, good) = (FakeNode::dying(address()).await, FakeNode::replying(address()).await);
    dying.die();
    let nginx = Nginx::before_nodes(&[nowhere, dying.address, good.address], version).await;
    (dying, good, nginx)
}

/// Sends `request(n)` for several `n` and returns the statuses, each with how often it came.
async fn statuses(request: impl Fn(usize) -> Call) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for n in 0..REQUESTS {
        *statuses.entry(request(n).send().await.status).or_default() += 1;
    }
    statuses
}

async fn a_publish_with_a_key_is_repeated_at_another_node(version: Version) {
    let (dying, good, nginx) = one_good_node_behind(version).await;
    let address = nginx.address;
    let publish = |n: usize| {
        let key = format!("k{n}");
        http::post(address, "/v1/rooms/a%2Fb?event=e", &json!({"n": n})).header("idempotency-key", &key)
    };
    assert_eq!(statuses(publish).await, BTreeMap::from([(200, REQUESTS)]));
    let (tried, served) = (dying.requests(), good.requests());
    assert!(!tried.is_empty(), "the dying node was never asked");
    assert_eq!(served.len(), REQUESTS, "{served:?}");
    for request in tried {
        assert_eq!(request.line, "POST /v1/rooms/a%2Fb?event=e");
        assert!(served.contains(&request), "{request:?} was not repeated unchanged: {served:?}");
    }
}

/// A repeat would be a second publication, or a second command. Only a failed connect may send it to another node.
async fn other_posts_are_sent_once(version: Version) {
    for (path, key) in [
        ("/v1/rooms/a", None),
        ("/v1/rooms/a", Some("")),
        ("/v1/publish", Some("k")),
        ("/v1/sessions/s", Some("k")),
        ("/v1/rooms/a/more", Some("k")),
    ] {
        let (dying, good, nginx) = one_good_node_behind(version).await;
        let address = nginx.address;
        let post = |n: usize| {
            let post = http::post(address, path, &json!([n]));
            if let Some(key) = key { post.header("idempotency-key", key) } else { post }
        };
        let statuses = statuses(post).await;
        let (tried, served) = (dying.requests(), good.requests());
        assert!(!tried.is_empty() && !served.is_empty(), "{path} {key:?}: only one node was asked");
        assert_eq!(statuses, BTreeMap::from([(200, served.len()), (503, tried.len())]), "{path} {key:?}");
        assert!(tried.iter().all(|request| !served.contains(request)), "{path} {key:?} was repeated: {tried:?}");
    }
}

/// nginx itself tries no other node for a request during which its list of nodes has changed.
#[tokio::test]
async fn a_publish_with_a_key_is_repeated_although_dns_has_dropped_its_node() {
    let [first, second] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    let port = free_port();
    let dying = FakeNode::dying((first, port)).await;
    let good = FakeNode::replying((second, port)).await;
    let dns = Dns::start(&[first]).await;
    let nginx = Nginx::before_names(&dns, port).await;
    dns.change(&[first]).await;
    let publish = http::post(nginx.address, "/v1/rooms/a", &json!(1)).header("idempotency-key", "k");
    let publish = tokio::spawn(publish.send());
    eventually("the node has the request", async || dying.requests().len() == 1).await;
    dns.change(&[second]).await;
    dying.die();
    let reply = publish.await.expect("the request had a reply");
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(good.requests(), dying.requests());
}

/// The size of a body with a key is limited as that of any other, and its failure is the API's.
async fn a_publish_with_a_key_is_refused_like_any_other(version: Version) {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let nginx = Nginx::before_nodes(&[nowhere], version).await;
    let publish = |body: &Value| http::post(nginx.address, "/v1/rooms/a", body).header("idempotency-key", "k");
    let reply = publish(&json!("x".repeat(3 << 20))).send().await;
    assert_eq!(reply.problem(413), "message_too_large");
    let reply = publish(&json!(1)).send().await;
    assert_eq!(reply.problem(503), "internal");
    assert!(!reply.header("retry-after").is_empty(), "{reply:?}");
}

/// Publishers that never retry, while one node of three stops and another is killed.
async fn nodes_that_end_cost_no_publish_with_a_key(version: Version) {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).drain(2).start().await;
    let nginx = Nginx::before(&cluster, version).await;
    let (published, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let (address, published, is_over) = (nginx.address, Arc::clone(&published), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut cursors = BTreeMap::new();
                while !is_over.load(Ordering::Relaxed) {
                    let key = format!("{publisher}-{}", cursors.len());
                    let call = http::post(address, "/v1/rooms/a", &json!(key)).header("idempotency-key", &key);
                    let reply = call.send().await.expect(200);
                    let cursor = reply["cursor"].as_str().expect("a room with history has cursors").to_owned();
                    assert!(cursors.insert(cursor, json!(key)).is_none(), "{reply} is there for two keys");
                    published.fetch_add(1, Ordering::Relaxed);
                }
                cursors
            })
        })
        .collect();
    counts_up(&published, 100).await;
    cluster.nodes[0].terminate();
    cluster.nodes[0].exit(patient(Duration::from_secs(6))).await;
    counts_up(&published, 100).await;
    cluster.nodes[1].kill();
    counts_up(&published, 100).await;
    is_over.store(true, Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for publisher in publishers {
        expected.extend(publisher.await.expect("no publish of this publisher failed"));
    }
    let (epoch, _) = split(&json!(expected.keys().next()));
    assert_eq!(history(cluster.address(2), "a", &epoch).await, expected);
}

/// All messages of a room's epoch: the data, by cursor.
///
/// # Panics
/// When two messages have the same cursor.
async fn history(address: SocketAddr, room: &str, epoch: &str) -> BTreeMap<String, Value> {
    let mut messages = BTreeMap::new();
    let mut since = format!("{epoch}.0");
    loop {
        let page = http::get(address, &format!("/v1/rooms/{room}/history?since={since}")).send().await.expect(200);
        let page = page["messages"].as_array().expect("messages is a list").clone();
        if page.is_empty() {
            return messages;
        }
        for message in page {
            since = message["cursor"].as_str().expect("a message has a cursor").to_owned();
            let earlier = messages.insert(since.clone(), message["data"].clone());
            assert_eq!(earlier, None, "{message} has the cursor of another one");
        }
    }
}

for_each! {
    nginx_1_22(Version::Old), nginx_new(Version::New):
    a_publish_with_a_key_is_repeated_at_another_node,
    other_posts_are_sent_once,
    a_publish_with_a_key_is_refused_like_any_other,
    nodes_that_end_cost_no_publish_with_a_key,
}
