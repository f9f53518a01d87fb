//! Resumes: of many rooms at once, and after a gap in the node's memory of a room.

use std::net::SocketAddr;

use fanfare_tests::cluster::{Node, serve};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, http};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::fixtures::{NO_RATE, metric, one_node_with, split};

const ROOMS: usize = 40;
/// Over all rooms more than the 1,024 frames of an outbox, but far fewer in each room.
const MISSED: usize = 60;

/// Missed messages were counted against the outbox before the socket was written to for the first time.
#[tokio::test]
async fn resuming_many_rooms_with_small_messages_was_taken_for_a_slow_reader() {
    let cluster = one_node_with(NO_RATE).await;
    let query: Vec<String> = (0..ROOMS).map(|n| format!("room=r{n}")).collect();
    let path = format!("/ws?{}", query.join("&"));
    // A new connection goes to the least loaded shard, so that both shards have the rooms in memory.
    let mut keepers = Vec::new();
    for _ in 0..2 {
        let mut keeper = Client::open(cluster.address(0), &path).await;
        let mut cursors = vec![String::new(); ROOMS];
        for _ in 0..ROOMS {
            let joined = keeper.take("joined").await.json;
            let room: usize = joined["room"].as_str().and_then(|name| name[1..].parse().ok()).expect("a room of ours");
            joined["cursor"].as_str().expect("rooms have history").clone_into(&mut cursors[room]);
        }
        keepers.push((keeper, cursors));
    }
    for n in 0..ROOMS {
        let items: Vec<Value> = (0..MISSED).map(|data| json!({"room": format!("r{n}"), "data": data})).collect();
        http::post(cluster.address(0), "/v1/publish", &json!(items)).send().await.expect(200);
    }
    for (keeper, _) in &mut keepers {
        keeper.data(ROOMS * MISSED).await;
    }
    let since = keepers[0].1.join("~");
    for _ in 0..2 {
        let mut back = Client::open(cluster.address(0), &format!("{path}&since={since}")).await;
        let mut next = [0; ROOMS];
        for _ in 0..ROOMS * MISSED {
            let message = back.message().await; // a close would fail here
            let room: usize = message["room"].as_str().and_then(|name| name[1..].parse().ok()).expect("a room of ours");
            assert_eq!(message["data"], next[room], "{message}");
            next[room] += 1;
        }
        assert!(back.so_far().await.iter().all(|frame| frame.json["resumed"] == true), "all rooms were resumed");
    }
}

/// A connection to Redis that can be cut for one node alone.
struct Link {
    address: SocketAddr,
    whole: watch::Sender<bool>,
}

impl Link {
    async fn to(redis: &Redis) -> Self {
        let target = redis.url().trim_start_matches("redis://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (whole, watched) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pump(near, target.clone(), watched.clone()));
            }
        });
        Self { address, whole }
    }
}

/// Copies the bytes of one connection until the link is cut.
async fn pump(mut near: TcpStream, target: String, mut whole: watch::Receiver<bool>) {
    if !*whole.borrow() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let cut = async { whole.wait_for(|whole| !whole).await.is_ok() };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = cut => {}
    }
}

async fn node(scratch: &Scratch, name: &str, redis: &str) -> Node {
    let config = scratch.file("short.toml", "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 100, ttl = \"1s\" }\n");
    let launch = serve(scratch, name).arg("--config").arg(config).arg("--redis").arg(redis);
    Node::ready(name.to_owned(), launch.start(scratch.path()), scratch).await
}

async fn publish(node: &Node, room: &str) -> Value {
    http::post(node.listen, &format!("/v1/rooms/{room}"), &json!(1)).send().await.expect(200)["cursor"].clone()
}

/// After the gap, the messages in the node's memory ended before the gap; a resume from before it was still served from there.
#[tokio::test]
async fn a_resume_from_before_an_unfilled_gap_was_answered_from_memory() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let link = Link::to(&redis).await;
    let mut far = node(&scratch, "a", &format!("redis://{}", link.address)).await;
    let near = node(&scratch, "b", &redis.url()).await;
    let mut member = Client::connect(far.listen).await;
    member.join("r").await;
    let old = publish(&near, "r").await;
    let last_seen = publish(&near, "r").await;
    member.data(2).await;
    link.whole.send(false).expect("the link is watched");
    eventually("the node notices that Redis is away", async || metric(far.admin, "fanfare_backplane_up").await < 0.5)
        .await;
    for _ in 0..3 {
        publish(&near, "r").await;
    }
    eventually("the room's history has run out", async || {
        let history = http::get(near.listen, "/v1/rooms/r/history").send().await.expect(200);
        history["messages"] == json!([])
    })
    .await;
    link.whole.send(true).expect("the link is watched");
    let gap = member.take("gap").await.json;
    assert_eq!(gap["from"], last_seen, "{gap}");
    assert_eq!(split(&gap["to"]).0, split(&last_seen).0, "the epoch is the same, its messages are gone: {gap}");
    // A new connection goes to the least loaded shard: one of these two is on the member's shard, which has the memory.
    let mut resumed = Vec::new();
    for _ in 0..2 {
        let mut back = Client::connect(far.listen).await;
        let joined = back.join_with(json!({"room": "r", "since": old})).await;
        assert_eq!(joined["resumed"], false, "{joined}");
        assert!(joined["gap"].is_object(), "{joined}");
        assert!(back.so_far().await.is_empty(), "no message from before the gap comes");
        resumed.push(back);
    }
    assert!(far.is_running(), "{}", far.log());
    let cursor = publish(&near, "r").await;
    for client in resumed.iter_mut().chain([&mut member]) {
        assert_eq!(client.message().await["cursor"], cursor, "delivery continues");
    }
}
