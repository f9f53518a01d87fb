//! Polls with extreme cursors, many rooms or many messages, and what polls cost.

use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::http::Reply;
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::http_connection::HttpConnection;
use fanfare_tests::transport::poll::{self, Missed, PollResponse, served};
use fanfare_tests::wait::{eventually, ticks, within};
use fanfare_tests::{Cluster, RoomRequest, Transport, http};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::info;
use crate::fixtures::{metric, one_node, one_node_with, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// Polls over one connection, which are answered by one shard.
struct Line(HttpConnection);

impl Line {
    async fn to(cluster: &Cluster) -> Self {
        Self(HttpConnection::connect(cluster.address(0)).await.expect("a connection"))
    }

    async fn send(&mut self, request: &RoomRequest) {
        assert!(self.0.is_kept(), "the connection stays open: another one may lead to another shard");
        self.0.get(&request.path(Transport::LongPoll, request.since.as_deref()), &[]).await.expect("a poll is sent");
    }

    async fn answer(&mut self) -> Reply {
        let answer = async {
            let head = self.0.head().await?;
            self.0.rest(head).await
        };
        within("the answer to a poll", answer).await.expect("a whole answer")
    }

    async fn poll(&mut self, request: &RoomRequest) -> Reply {
        self.send(request).await;
        self.answer().await
    }
}

/// The gateway added one to the offset of a client's cursor before it compared the offset with the head.
#[tokio::test]
async fn the_offset_of_a_cursor_overflowed() {
    let cluster = one_node().await;
    let mut line = Line::to(&cluster).await;
    let start = served(&line.poll(&RoomRequest::of(&["a"])).await);
    publish_numbers(&cluster, "a", 1, 1).await;
    let seen = served(&line.poll(&RoomRequest::of(&["a"]).since(start.cursor())).await);
    assert_eq!(seen.data(), [json!(1)], "this shard now has a message in memory");
    let epoch = split(&json!(start.cursor())).0;
    for epoch in ["AAAAAAAA", &epoch] {
        let request = RoomRequest::of(&["a"]).since(format!("{epoch}.{}", u64::MAX)).with("wait=0");
        let answer = served(&line.poll(&request).await);
        assert_eq!(
            (answer.data(), answer.cursor()),
            (vec![json!(1)], seen.cursor()),
            "{epoch}: the kept message follows"
        );
        assert_eq!(answer.gap.map(|gap| gap["a"]), Some(Missed { missed: None }), "{epoch}");
    }
}

/// The rooms in one poll; how many such lists a shard keeps following for later polls; and how many lists are polled.
const ROOMS: usize = 128;
const LISTS_MAX: usize = 128;
const LISTS: usize = 140;

/// Each room in a poll stayed followed for 40 s, and the number of these rooms had no limit.
#[tokio::test]
async fn polled_rooms_were_followed_without_a_limit() {
    let cluster = one_node().await;
    let mut line = Line::to(&cluster).await;
    let list = |n: usize| {
        let names: Vec<String> = (0..ROOMS).map(|room| format!("{n}:{room}")).collect();
        RoomRequest::of(&names.iter().map(String::as_str).collect::<Vec<_>>()).with("wait=0")
    };
    let followed = async || metric(cluster.nodes[0].admin, "fanfare_rooms").await as usize;
    // Many polls for the same rooms count as one list.
    for _ in 0..LISTS_MAX {
        assert_eq!(line.poll(&list(0)).await.status, 200);
    }
    for n in 1..LISTS {
        assert_eq!(line.poll(&list(n)).await.status, 200);
    }
    eventually("the rooms are within the limit", async || followed().await <= LISTS_MAX * ROOMS).await;
    for n in [0, LISTS_MAX - 1] {
        assert_eq!(line.poll(&list(n)).await.status, 200);
        assert_eq!(followed().await, LISTS_MAX * ROOMS, "list {n} was among them");
    }
}

/// A room that is stored in this Redis and has a message: its name, and the message's cursor.
async fn room_in(redis: &Redis, cluster: &Cluster) -> (String, String) {
    for n in 0..64 {
        let room = format!("of-{}-{n}", redis.address().port());
        let at = publish_numbers(cluster, &room, 0, 1).await;
        if !redis.values(&format!("KEYS *{room}*")).await.is_empty() {
            return (room, at);
        }
    }
    panic!("none of 64 rooms is stored in this Redis");
}

/// A poll waited until the second of its rooms was followed. A message in the first room woke it during that wait, where the
/// wake-up was ignored, and the poll then waited for its whole time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_was_missed_while_a_poll_waited_for_another_of_its_rooms() {
    let scratch = Scratch::new();
    let (near, far) = (Redis::start(scratch.path()).await, Redis::start_as("far", scratch.path(), &[]).await);
    let proxy = Proxy::before(far.address()).await;
    let addresses = vec![format!("{},redis://{}", near.url(), proxy.address)];
    let cluster = Cluster::over_addresses(1, addresses).start().await;
    let node = &cluster.nodes[0];
    let (followed, at) = room_in(&near, &cluster).await;
    let (new, new_at) = room_in(&far, &cluster).await;
    let mut line = Line::to(&cluster).await;
    let request = RoomRequest::of(&[&followed]).since(at.as_str()).with("wait=0");
    assert_eq!(served(&line.poll(&request).await).cursor(), at);
    // To follow a room there takes 0.4 s: longer than a publish in the near Redis, and shorter than the second after which
    // a poll gives up.
    proxy.set(Fault::Delay { least: Duration::from_millis(200), jitter: Duration::ZERO });
    line.send(&RoomRequest::of(&[&followed, &new]).since(format!("{at}~{new_at}")).with("wait=55")).await;
    eventually("the poll asks for the second room", async || metric(node.admin, "fanfare_rooms").await > 1.5).await;
    publish_numbers(&cluster, &followed, 7, 1).await;
    let answer = served(&line.answer().await);
    assert_eq!(answer.data(), [json!(7)]);
}

/// The messages in each room, their size, and how many are published at once.
const MESSAGES: usize = 200;
const MESSAGE_BYTES: usize = 6_000;
const BATCH: usize = 100;

/// For each answer, which holds 256 KiB, up to a thousand messages of each room were read, and again for the next answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_read_far_more_from_redis_than_it_answered() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let address = cluster.address(0);
    let (rooms, mut cursors) = (["a", "b"], Vec::new());
    for room in rooms {
        let items = json!(vec![json!({"room": room, "data": "x".repeat(MESSAGE_BYTES)}); BATCH]);
        let mut reply = Value::Null;
        for _ in 0..MESSAGES / BATCH {
            reply = http::post(address, "/v1/publish", &items).send().await.expect(200);
        }
        cursors.push(format!("{}.0", split(&reply[0]["cursor"]).0));
    }
    let (mut at, mut count, mut answered) = (cursors.join("~"), 0, 0);
    let before = info(cluster.redis(), "total_net_output_bytes:").await;
    loop {
        let request = RoomRequest::of(&rooms).since(at.as_str()).with("limit=1000&wait=0");
        let reply = poll::get(address, &request).send().await;
        let answer = served(&reply);
        (count, answered) = (count + answer.messages().count(), answered + reply.text.len() as u64);
        answer.cursor().clone_into(&mut at);
        if !answer.more {
            break;
        }
    }
    let sent = info(cluster.redis(), "total_net_output_bytes:").await - before;
    assert_eq!(count, rooms.len() * MESSAGES);
    assert!(sent < 2 * answered, "Redis sent {sent} bytes for answers of {answered}");
}

/// Only as many of the last messages were read as the limit had left; the others were skipped.
#[tokio::test]
async fn a_poll_for_the_last_n_lost_messages_beyond_its_limit() {
    let cluster = one_node_with(KEEP_ALL).await;
    for room in ["p", "q"] {
        publish_numbers(&cluster, room, 0, 10).await;
    }
    let last: Vec<Value> = (5..10).map(|n| json!(n)).collect();
    for (rooms, limit) in [(&["p", "q"][..], 5), (&["p", "q"], 7), (&["p"], 2)] {
        let mut request = RoomRequest::of(rooms).with(&format!("last=5&limit={limit}"));
        let mut all = Vec::new();
        loop {
            let part = poll::once(cluster.address(0), &request).await;
            assert!(part.data().len() <= limit && part.gap.is_none(), "{part:?}");
            all.extend(part.data());
            request = RoomRequest::of(rooms).since(part.cursor()).with(&format!("limit={limit}"));
            if !part.more {
                break;
            }
        }
        assert_eq!(all, vec![last.clone(); rooms.len()].concat(), "{rooms:?} with a limit of {limit}");
    }
}

/// A poll by path with another request right behind it.
fn with_another(at: &str) -> String {
    format!("GET /v1/rooms/a/poll?since={at} HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/rooms/a HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// A poll by body with a line end after it, as old clients send.
fn with_a_line_end(at: &str) -> String {
    let body = poll::body(&[("a", Some(at))], 25).to_string();
    format!("POST /v1/poll HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}\r\n", body.len())
}

/// When bytes came behind a poll, its connection closes after the answer. The answer lacked `Connection: close`.
#[tokio::test]
async fn a_poll_answer_did_not_announce_that_the_connection_closes() {
    let cluster = one_node().await;
    let node = &cluster.nodes[0];
    let mut at = poll::once(node.listen, &RoomRequest::of(&["a"])).await.cursor().to_owned();
    for request in [with_another, with_a_line_end] {
        let mut stream = TcpStream::connect(node.listen).await.expect("a listener");
        stream.write_all(request(&at).as_bytes()).await.expect("the request is taken");
        eventually("the poll waits", async || metric(node.admin, "fanfare_polls_waiting").await > 0.5).await;
        at = publish_numbers(&cluster, "a", 1, 1).await;
        let mut text = String::new();
        within("the end of the connection", stream.read_to_string(&mut text)).await.expect("an orderly end");
        let (head, _) = text.split_once("\r\n\r\n").expect("an answer has a head");
        assert!(head.starts_with("HTTP/1.1 200 ") && text.matches("HTTP/1.1").count() == 1, "{text}");
        assert!(head.to_lowercase().contains("\r\nconnection: close"), "{head}");
    }
}

/// The space for cursors was taken off the space for messages, and with some 1,800 rooms nothing was left.
#[tokio::test]
async fn a_poll_of_thousands_of_rooms_never_got_a_message() {
    const ROOMS: usize = 2_500;
    let cluster = one_node_with("[limits]\nrooms_per_session = 3000\n").await;
    let address = cluster.address(0);
    let names: Vec<String> = (0..ROOMS).map(|n| format!("r{n}")).collect();
    let fresh: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), Value::Null)).collect();
    let first = poll::post(address, &json!({"rooms": fresh, "wait": 0})).send().await.expect(200);
    let next = json!({"rooms": first["cursors"], "wait": 20});
    let waiting = tokio::spawn(poll::post(address, &next).send());
    eventually("the poll waits", async || metric(cluster.nodes[0].admin, "fanfare_polls_waiting").await > 0.5).await;
    publish_numbers(&cluster, "r1234", 7, 1).await;
    let reply = within("the answer", waiting).await.expect("a poll").expect(200);
    assert_eq!((&reply["messages"][0]["room"], &reply["messages"][0]["data"]), (&json!("r1234"), &json!(7)));
}

#[tokio::test]
async fn the_bytes_of_polls_were_not_counted() {
    let cluster = one_node().await;
    let bytes = async || metric(cluster.nodes[0].admin, "fanfare_delivered_bytes_total").await;
    let cursor = publish_numbers(&cluster, "a", 0, 1).await;
    let since = format!("{}.0", split(&json!(cursor)).0);
    let before = bytes().await;
    let reply = http::get(cluster.address(0), &format!("/v1/rooms/a/poll?wait=0&since={since}")).send().await;
    assert!(
        (bytes().await - before - reply.text.len() as f64).abs() < 0.5,
        "{} bytes: {}",
        reply.text.len(),
        bytes().await
    );
}

/// Members of other transports notice nothing of a connection that is made again within a second.
#[tokio::test]
async fn a_short_loss_of_the_backplane_ended_waiting_polls() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(2, addresses).config(KEEP_ALL).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let since = publish_numbers(&cluster, "a", 0, 1).await;
    let waiting = tokio::spawn(http::get(address, &format!("/v1/rooms/a/poll?since={since}")).send());
    eventually("the poll waits", async || metric(admin, "fanfare_polls_waiting").await > 0.5).await;
    for round in 0..3 {
        let reconnects = metric(admin, "fanfare_backplane_reconnects_total").await;
        proxy.reset();
        eventually("all connections are made again", async || {
            metric(admin, "fanfare_backplane_reconnects_total").await >= reconnects + 3.0
                && metric(admin, "fanfare_backplane_up").await > 0.5
        })
        .await;
        assert!(!waiting.is_finished(), "the poll waits on, round {round}");
    }
    http::post(cluster.address(1), "/v1/rooms/a", &json!("at last")).send().await.expect(200);
    let reply = served(&within("the answer", waiting).await.expect("a poll"));
    assert_eq!(reply.data(), [json!("at last")]);
}

/// The client had 5 s for the whole answer, even if it read all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_waiting_poll_was_cut_while_its_client_read_it() {
    let cluster = one_node().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let since = publish_numbers(&cluster, "a", 0, 1).await;
    // A small buffer, so that the node has to wait for the client.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut poll = socket.connect(address).await.expect("a connection");
    let get = format!("GET /v1/rooms/a/poll?since={since} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    poll.write_all(get.as_bytes()).await.expect("a poll is sent");
    eventually("the poll waits", async || metric(admin, "fanfare_polls_waiting").await > 0.5).await;
    let items = json!(vec![json!({"room": "a", "data": "x".repeat(20_000)}); 12]);
    http::post(address, "/v1/publish", &items).send().await.expect(200);
    // 40 KB in a second: 240 KB in 6 s.
    let (mut pace, mut text, mut part) = (ticks(Duration::from_millis(100)), Vec::new(), vec![0; 4_000]);
    loop {
        pace.tick().await;
        match poll.read(&mut part).await.expect("the connection is not reset") {
            0 => break,
            count => text.extend_from_slice(&part[..count]),
        }
    }
    let text = String::from_utf8(text).expect("text");
    let (_, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let messages = PollResponse::parse(body).messages().count();
    assert_eq!(messages, 12);
}

/// Polls were woken for a drain only if everything was well before, so those of the other Redis were cut off.
#[tokio::test]
async fn a_waiting_poll_was_cut_at_a_drain_while_another_redis_was_away() {
    let scratch = Scratch::new();
    let mut one = Redis::start_as("one", scratch.path(), &[]).await;
    let other = Redis::start_as("other", scratch.path(), &[]).await;
    let both = format!("{} {}", one.url(), other.url());
    let cluster = Cluster::over_addresses(1, vec![both]).config(KEEP_ALL).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let (room, since) = room_in(&other, &cluster).await;
    one.kill();
    eventually("one of them is away", async || metric(admin, "fanfare_backplane_up").await < 0.5).await;
    let waiting = tokio::spawn(http::get(address, &format!("/v1/rooms/{room}/poll?since={since}")).send());
    eventually("the poll waits", async || metric(admin, "fanfare_polls_waiting").await > 0.5).await;
    cluster.nodes[0].terminate();
    let reply = served(&within("the answer", waiting).await.expect("an answer before the exit"));
    assert!(reply.data().is_empty(), "{reply:?}");
}
