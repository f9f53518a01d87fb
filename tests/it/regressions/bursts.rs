//! Bursts that are permitted: what they cost a node, and the members who read at their pace.

use std::net::SocketAddr;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::transport::poll::{self, PollResponse};
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient, http};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::fixtures::{metric, one_node, one_node_with};
use crate::sentences::KEEP_ALL;

/// Publishes this many messages of this size in as many calls as it takes, and returns their texts.
async fn publish(address: SocketAddr, room: &str, count: usize, bytes: usize) -> Vec<Value> {
    let texts: Vec<Value> = (0..count).map(|n| json!(format!("{n:0bytes$}"))).collect();
    for part in texts.chunks((1_000_000 / bytes).clamp(1, 100)) {
        let items: Vec<Value> = part.iter().map(|data| json!({"room": room, "data": data})).collect();
        http::post(address, "/v1/publish", &json!(items)).send().await.expect(200);
    }
    texts
}

/// Until the node has looked whether all that waits is within its budget, which it does before it reports this metric.
async fn until_weighed(admin: SocketAddr) -> f64 {
    eventually("something waits", async || metric(admin, "fanfare_outbox_bytes").await > 0.0).await;
    metric(admin, "fanfare_outbox_bytes").await
}

/// All messages of one call came into the outbox at once, and it was full after a quarter of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_large_messages_closed_all_members() {
    let cluster = one_node().await;
    let request = RoomRequest::of(&["a"]);
    let mut members = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Stream] {
        for _ in 0..5 {
            members.push(TransportClient::join(cluster.address(0), transport, &request).await);
        }
    }
    let texts = publish(cluster.address(0), "a", 100, 10_000).await;
    until_weighed(cluster.nodes[0].admin).await;
    for member in &mut members {
        assert_eq!(member.data(texts.len()).await, texts);
    }
    assert_eq!(metric(cluster.nodes[0].admin, "fanfare_slow_consumers_total").await, 0.0);
}

/// A message that waits for a thousand members exists once, and was weighed a thousand times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_exist_once_were_weighed_for_each_member() {
    let cluster = one_node_with("[limits]\noutbox_total_bytes = 4194304\n").await;
    let mut members = Vec::new();
    for _ in 0..100 {
        let mut member = Client::connect(cluster.address(0)).await;
        member.join("a").await;
        members.push(member);
    }
    let texts = publish(cluster.address(0), "a", 4, 60_000).await;
    let waiting = until_weighed(cluster.nodes[0].admin).await;
    assert!(waiting < 1_000_000.0, "{waiting} bytes of 240,000 that exist");
    for member in &mut members {
        assert_eq!(member.data(texts.len()).await, texts);
    }
    let admin = cluster.nodes[0].admin;
    assert_eq!(metric(admin, "fanfare_slow_consumers_total").await, 0.0);
    eventually("nothing is held", async || metric(admin, "fanfare_outbox_bytes").await < 1.0).await;
}

/// An event stream of several rooms got a copy of each message, because its event ids are its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_streams_of_two_rooms_copied_all_that_was_caught_up() {
    const STREAMS: usize = 100;
    const MESSAGES: usize = 40;
    let scratch = fanfare_tests::scratch::Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let cluster = Cluster::over_addresses(2, vec![format!("redis://{}", proxy.address), redis.url()]);
    let cluster = cluster.config(KEEP_ALL).start().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let request = RoomRequest::of(&["a", "b"]);
        streams.push(TransportClient::join(cluster.address(0), Transport::Sse, &request).await);
    }
    let before = cluster.nodes[0].resident_bytes().expect("the node runs");
    proxy.set(Fault::Stall);
    let texts = publish(cluster.address(1), "a", MESSAGES, 60_000).await;
    proxy.reset();
    proxy.heal();
    let all = async |mut stream: TransportClient| assert_eq!(stream.data(MESSAGES).await, texts);
    let mut reads = std::pin::pin!(join_all(streams.into_iter().map(all)));
    let mut grown = 0;
    while (&mut reads).now_or_never().is_none() {
        grown = grown.max(cluster.nodes[0].resident_bytes().expect("the node runs").saturating_sub(before));
        tokio::task::yield_now().await;
    }
    let copies = (STREAMS * MESSAGES * 60_000) as u64;
    assert!(grown < copies / 4, "{grown} bytes for {copies} bytes of copies");
    assert_eq!(metric(cluster.nodes[0].admin, "fanfare_slow_consumers_total").await, 0.0);
}

/// Answers of polls that nobody had read yet stood in no budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_polls_were_in_no_budget() {
    const POLLS: usize = 200;
    let cluster = one_node_with("[limits]\noutbox_total_bytes = 16777216\n").await;
    let request = RoomRequest::of(&["a"]);
    let start = poll::once(cluster.address(0), &request).await;
    let request = request.since(start.cursor());
    let path = request.path(Transport::LongPoll, request.since.as_deref());
    let get = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", cluster.address(0));
    let mut polls = Vec::new();
    for _ in 0..POLLS {
        // A small buffer, so that the node has to keep what the client does not read.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let mut poll = socket.connect(cluster.address(0)).await.expect("a connection");
        poll.write_all(get.as_bytes()).await.expect("a poll is sent");
        polls.push(poll);
    }
    let admin = cluster.nodes[0].admin;
    eventually("all wait", async || metric(admin, "fanfare_polls_waiting").await >= POLLS as f64).await;
    let texts = publish(cluster.address(0), "a", 60, 16_000).await;
    eventually("all are answered", async || metric(admin, "fanfare_polls_waiting").await < 1.0).await;
    until_weighed(admin).await;
    let mut bytes = 0;
    for mut poll in polls {
        let mut reply = String::new();
        poll.read_to_string(&mut reply).await.expect("a whole answer");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        if head.starts_with("HTTP/1.1 503 ") {
            assert!(body.contains("\"backplane_overloaded\""), "{body}");
            continue;
        }
        bytes += body.len();
        let answer = PollResponse::parse(body);
        let seen = answer.data();
        assert_eq!(seen, texts[..seen.len()], "the messages come from the first one");
        assert!(!seen.is_empty(), "{body}");
    }
    assert!(bytes < POLLS * 60_000, "{bytes} bytes were made for {POLLS} polls at once");
    eventually("nothing is held", async || metric(admin, "fanfare_outbox_bytes").await < 1.0).await;
}

/// The members whose outboxes were fullest were closed, even if they read; the search for each went over all sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_was_freed_at_the_cost_of_members_who_read() {
    let cluster = one_node_with("[limits]\noutbox_total_bytes = 4194304\noutbox_seconds = 60\n").await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let mut asleep = Vec::new();
    for n in 0..60 {
        let mut member = Client::connect(address).await;
        member.join(&format!("room-{n}")).await;
        asleep.push(member);
    }
    let mut reader = Client::connect(address).await;
    reader.join("busy").await;
    // What waits for those who do not read exists once for each of them, and is more than the budget.
    for n in 0..60 {
        publish(address, &format!("room-{n}"), 4, 60_000).await;
        let texts = publish(address, "busy", 1, 60_000).await;
        assert_eq!(reader.data(1).await, texts);
    }
    let waiting = async || metric(admin, "fanfare_outbox_bytes").await;
    let closed = async || metric(admin, "fanfare_slow_consumers_total").await;
    eventually("memory is freed", async || closed().await > 0.0 && waiting().await < 4_194_304.0).await;
    let texts = publish(address, "busy", 10, 60_000).await;
    assert_eq!(reader.data(10).await, texts, "the member that reads stays");
    assert!(closed().await < 60.0, "only as many are closed as have to be");
}
