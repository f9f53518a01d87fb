//! Requests and answers without a limit on their size or time, or without a check of their sender.

use std::time::Duration;

use fanfare_tests::http::{call, get};
use fanfare_tests::wait::{eventually, patience, patient, ticks, within, within_time};
use fanfare_tests::{Client, Cluster, http};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::fixtures::{NO_RATE, UnfinishedPublish, one_node, one_node_with, split};

/// Messages of 10 KB; together they fill four outboxes.
const LARGE: usize = 100;
/// Half an outbox of 256 KiB for the messages, and what is around and between them.
const ANSWER_BYTES_MAX: usize = (128 << 10) + 1024;

async fn room_of_large_messages() -> (Cluster, String) {
    let cluster = one_node_with(NO_RATE).await;
    let data = "x".repeat(10_000);
    let mut head = Value::Null;
    for first in (0..LARGE).step_by(50) {
        let items: Vec<Value> =
            (first..first + 50).map(|n| json!({"room": "a", "data": {"n": n, "text": data}})).collect();
        let reply = http::post(cluster.address(0), "/v1/publish", &json!(items)).send().await.expect(200);
        head = reply[49]["cursor"].clone();
    }
    let epoch = split(&head).0;
    (cluster, epoch)
}

/// Adds the numbers of an answer's messages to `into`, and returns the cursor of the next page.
fn numbers(history: &Value, into: &mut Vec<u64>) -> Value {
    let messages = history["messages"].as_array().expect("history has messages");
    into.extend(messages.iter().map(|message| message["data"]["n"].as_u64().expect("our own data")));
    assert_eq!(
        messages.last().map(|message| &message["cursor"]),
        Some(&history["cursor"]),
        "the cursor is that of the last message"
    );
    history["cursor"].clone()
}

/// A history answer was one frame of any size, far larger than an outbox.
#[tokio::test]
async fn a_history_answer_was_larger_than_the_outbox() {
    let (cluster, epoch) = room_of_large_messages().await;
    let mut client = Client::connect(cluster.address(0)).await;
    let mut since = json!(format!("{epoch}.0"));
    let mut all = Vec::new();
    while all.len() < LARGE {
        client.send(json!({"type": "history", "room": "a", "since": since, "limit": LARGE})).await;
        let answer = client.take("history").await;
        assert!(answer.text.len() <= ANSWER_BYTES_MAX, "{} bytes", answer.text.len());
        since = numbers(&answer.json, &mut all);
    }
    assert_eq!(all, (0..LARGE as u64).collect::<Vec<_>>(), "every message once and in order");
    client.send(json!({"type": "history", "room": "a"})).await;
    let answer = client.take("history").await;
    assert!(answer.text.len() <= ANSWER_BYTES_MAX, "{} bytes", answer.text.len());
    let mut newest = Vec::new();
    numbers(&answer.json, &mut newest);
    assert_eq!(newest.last(), Some(&(LARGE as u64 - 1)), "without `since` the newest messages are kept");
}

/// Only payloads were counted, and the message that exceeds the limit was sent too: the room's name, which every message
/// repeats, nearly doubled this answer.
#[tokio::test]
async fn a_history_answer_was_larger_than_its_limit_by_what_is_around_the_payloads() {
    const MESSAGES: usize = 300;
    let cluster = one_node_with("[[rooms]]\nmatch = \"*\"\nhistory = { messages = 300, ttl = \"1h\" }\n").await;
    let room = "r".repeat(255);
    for _ in 0..MESSAGES / 100 {
        let items = json!(vec![json!({"room": room, "data": "x".repeat(300)}); 100]);
        http::post(cluster.address(0), "/v1/publish", &items).send().await.expect(200);
    }
    let newest = get(cluster.address(0), &format!("/v1/rooms/{room}/history?limit={MESSAGES}")).send().await;
    let had = newest.json()["messages"].as_array().expect("messages").len();
    assert!((MESSAGES / 2..MESSAGES).contains(&had), "{had} messages");
    assert!(newest.text.len() <= ANSWER_BYTES_MAX, "{} bytes", newest.text.len());
}

#[tokio::test]
async fn a_history_answer_over_http_had_no_size_limit() {
    let (cluster, epoch) = room_of_large_messages().await;
    let mut since = format!("{epoch}.0");
    let mut all = Vec::new();
    while all.len() < LARGE {
        let path = format!("/v1/rooms/a/history?limit={LARGE}&since={since}");
        let answer = get(cluster.address(0), &path).send().await;
        assert!(answer.text.len() <= ANSWER_BYTES_MAX, "{} bytes", answer.text.len());
        let cursor = numbers(&answer.expect(200), &mut all);
        cursor.as_str().expect("a cursor is a string").clone_into(&mut since);
    }
    assert_eq!(all, (0..LARGE as u64).collect::<Vec<_>>(), "every message once and in order");
}

/// Any web page that an operator had open could drain a node: a POST without a body needs no preflight.
#[tokio::test]
async fn a_web_page_could_drain_a_node() {
    let cluster = one_node().await;
    let admin = cluster.nodes[0].admin;
    for origin in ["https://evil.example", "null"] {
        let reply = call("POST", admin, "/drain").header("origin", origin).send().await;
        assert_eq!(reply.status, 403, "{origin}: {}", reply.text);
    }
    let ready = get(admin, "/readyz").send().await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")), "{}", ready.text);
    Client::connect(cluster.address(0)).await;
}

/// A request to the HTTP API was no longer counted once its path was known, so a drain ended while the last publishes were
/// being answered.
#[tokio::test]
async fn a_node_exited_while_a_publish_was_being_answered() {
    let mut cluster = Cluster::embedded().drain(30).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let unfinished = UnfinishedPublish::begin(address).await;
    cluster.nodes[0].terminate();
    eventually("the node drains", async || get(admin, "/readyz").send().await.status == 503).await;
    assert_eq!(unfinished.finish().await, "HTTP/1.1 200 OK\r\n");
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
}

/// Only the head of a request had a deadline: a body that came byte by byte held its connection forever.
#[tokio::test]
async fn a_slow_request_body_held_its_connection_forever() {
    let cluster = one_node().await;
    let mut stream = TcpStream::connect(cluster.address(0)).await.expect("a listener");
    let head = "POST /v1/rooms/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
                Content-Length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    let (mut reader, mut writer) = stream.split();
    let mut answer = String::new();
    let dribble = async {
        let mut tick = ticks(Duration::from_millis(500));
        while writer.write_all(b"1").await.is_ok() {
            tick.tick().await;
        }
        std::future::pending::<()>().await;
    };
    // A request may take 10 s.
    let ended = async {
        tokio::select! {
            // The end may be a reset, since bytes may have been under way.
            _ = reader.read_to_string(&mut answer) => {}
            () = dribble => {}
        }
    };
    within_time(patient(Duration::from_secs(15)), "the end of a slow request", ended).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// Asks for an upgrade with these two `X-Forwarded-For` headers; returns the status and the open connection.
async fn upgrade(cluster: &Cluster, forwarded: [&str; 2]) -> (String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(cluster.address(0)).await.expect("a listener");
    let [first, second] = forwarded;
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: {first}\r\nX-Forwarded-For: {second}\r\n\r\n",
        cluster.address(0)
    );
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    within("a status line", reader.read_line(&mut line)).await.expect("an answer");
    (line.split(' ').nth(1).unwrap_or_default().to_owned(), reader)
}

/// A proxy may append a second header instead of a second value. The gateway believed the first header, the client's own.
#[tokio::test]
async fn a_client_evaded_the_address_limit_with_its_own_forwarded_header() {
    let config = "[auth]\nmode = \"open\"\ntrusted_proxies = [\"127.0.0.0/8\"]\n[limits]\nconnections_per_ip = 1\n";
    let cluster = one_node_with(config).await;
    let (status, _held) = upgrade(&cluster, ["198.51.100.1", "203.0.113.5"]).await;
    assert_eq!(status, "101");
    let (status, _) = upgrade(&cluster, ["198.51.100.2", "203.0.113.5"]).await;
    assert_eq!(status, "429", "the same client with another forged address");
    let (status, _other) = upgrade(&cluster, ["198.51.100.1", "203.0.113.6"]).await;
    assert_eq!(status, "101", "another client that forges the address of the first one");
}
