//! Bursts that are permitted: what they cost a node, and the members who read at their pace.

use std::net::SocketAddr;
use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::transport::poll::{self, PollResponse};
use fanfare_tests::wait::{eventually, patient, ticks, within_time};
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient, http};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::presence::Keys;
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

/// Asks for something over a socket with a small buffer, so that the node has to keep what the client does not read.
async fn get_slowly(address: SocketAddr, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(address).await.expect("a connection");
    let get = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(get.as_bytes()).await.expect("a request is sent");
    stream
}

/// Reads until `text` has come so many times. The stream must not end before.
async fn read_until(stream: &mut TcpStream, text: &str, count: usize) {
    let (mut seen, mut rest, mut buffer) = (0, String::new(), [0; 4096]);
    let reading = async {
        while seen < count {
            let read = stream.read(&mut buffer).await.expect("the stream goes on");
            assert!(read > 0, "the stream ended after {seen} of {count}: {rest}");
            rest.push_str(&String::from_utf8_lossy(&buffer[..read]));
            seen += rest.matches(text).count();
            rest = rest.split_off(rest.rfind(text).map_or(rest.len().saturating_sub(text.len()), |at| at + text.len()));
        }
    };
    within_time(patient(Duration::from_secs(30)), text, reading).await;
}

/// Each event of an event stream names the client's cursors in all its rooms. A few calls filled its outbox with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_ids_of_many_rooms_closed_a_client_that_reads() {
    const ROOMS: usize = 100;
    let cluster = one_node().await;
    let rooms: Vec<String> = (0..ROOMS).map(|n| format!("room-{n}")).collect();
    let mut stream = get_slowly(cluster.address(0), &format!("/v1/rooms/{}/sse", rooms.join(","))).await;
    read_until(&mut stream, "event:joined", ROOMS).await;
    for room in &rooms[..4] {
        publish(cluster.address(0), room, 100, 100).await;
    }
    read_until(&mut stream, "\"type\":\"message\"", 400).await;
}

/// Each of the events of a storm was an entry of its own, and the entries filled the outbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_events_of_a_storm_closed_a_client_that_reads() {
    const EVENTS: usize = 30_000;
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut stream = get_slowly(cluster.address(0), "/v1/rooms/storm/stream?presence=1").await;
    read_until(&mut stream, "\"joined\"", 1).await;
    let keys = Keys::of(cluster.redis(), "storm").await;
    keys.change(cluster.redis(), &keys.channel, (1, EVENTS), (12, 1)).await;
    read_until(&mut stream, "\"member_joined\"", EVENTS).await;
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
    let mut polls = Vec::new();
    for _ in 0..POLLS {
        polls.push(get_slowly(cluster.address(0), &path).await);
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

/// Asks all questions before it reads an answer: each has its answer, in their order.
async fn all_are_answered(cluster: &Cluster, questions: u64, question: Value) {
    let admin = cluster.nodes[0].admin;
    let mut client = Client::connect(cluster.address(0)).await;
    for id in 0..questions {
        let mut question = question.clone();
        question["id"] = json!(id);
        client.send(question).await;
    }
    eventually("answers wait", async || metric(admin, "fanfare_outbox_bytes").await > 60_000.0).await;
    for id in 0..questions {
        let answer = client.next().await.json;
        assert_eq!((&answer["type"], &answer["id"]), (&question["type"], &json!(id)), "{answer}");
    }
    assert_eq!(metric(admin, "fanfare_slow_consumers_total").await, 0.0);
}

/// An answer was queued whatever waited already, and the third of these did not fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_that_were_asked_for_together_closed_a_client_that_reads() {
    let cluster = one_node_with("[limits]\noutbox_seconds = 600\n").await;
    publish(cluster.address(0), "big", 20, 20_000).await;
    all_are_answered(&cluster, 120, json!({"type": "history", "room": "big"})).await;
}

/// Only the portions of a long list waited for the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_member_lists_that_were_asked_for_together_closed_a_client_that_reads() {
    let cluster = one_node_with("[limits]\noutbox_seconds = 600\n").await;
    let mut members = Vec::new();
    for _ in 0..100 {
        let mut member = Client::connect(cluster.address(0)).await;
        member.join("r").await;
        members.push(member);
    }
    all_are_answered(&cluster, 900, json!({"type": "presence", "room": "r"})).await;
}

/// Questions are bounded by their rate only while the client reads the answers as fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_questions_of_a_client_that_does_not_read_waited_without_a_limit() {
    const QUESTIONS: usize = 1_400;
    let cluster = one_node_with("[limits]\noutbox_seconds = 600\n").await;
    publish(cluster.address(0), "big", 20, 20_000).await;
    let mut client = Client::connect(cluster.address(0)).await;
    let mut pace = ticks(Duration::from_millis(50));
    for id in 0..QUESTIONS {
        // Two bursts would be more than the rate of requests permits.
        if id >= 900 && id % 10 == 0 {
            pace.tick().await;
        }
        client.send(json!({"type": "history", "id": id, "room": "big", "limit": 1})).await;
    }
    let (mut answered, mut refused) = (Vec::new(), 0);
    while answered.len() + refused < QUESTIONS {
        let answer = client.next().await.json;
        match answer["code"].as_str() {
            None => answered.push(answer["id"].as_u64()),
            Some(code) => {
                assert_eq!(code, "backplane_overloaded", "{answer}");
                refused += 1;
            }
        }
    }
    assert!(answered.is_sorted(), "the answers come in the order of the questions");
    assert!((1_000..QUESTIONS).contains(&answered.len()), "{} of {QUESTIONS} were answered", answered.len());
}
