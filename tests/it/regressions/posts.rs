//! Commands by POST: in busy rooms, to sessions at a node that cannot be reached, and from malicious clients.

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::Transport;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Cluster, RoomRequest, TransportClient, http};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::info;
use crate::fixtures::{UnfinishedPublish, metric, one_node_with, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// Enough for a publish and a join to fall into the same pass of the shard many times.
const JOINS: usize = 300;

/// The shard took a message, then a posted join of the same pass, and then gave the message to the members: a new member got
/// the message twice, and a member that joined again lost it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posted_join_in_the_same_pass_as_a_message_repeated_or_lost_it() {
    let cluster = one_node_with(KEEP_ALL).await;
    for join in [json!({"type": "join", "room": "r"}), json!({"type": "join", "room": "r", "presence": true})] {
        let mut client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
        let mut at = split(&json!(client.cursor())).1;
        for n in 0..JOINS {
            let (last, joined) =
                tokio::join!(publish_numbers(&cluster, "r", n, 1), client.command(client.address, &join));
            assert_eq!(joined.expect(200)["type"], "joined");
            let last = split(&json!(last)).1;
            while at < last {
                let frame = client.next().await;
                let (kind, offset) = (frame.kind().to_owned(), split(&frame.json["cursor"]).1);
                match kind.as_str() {
                    "joined" => assert_eq!(offset, at, "{}: a member continues from its cursor", frame.text),
                    "message" => assert_eq!(offset, at + 1, "{}: each message once", frame.text),
                    _ => assert!(kind.starts_with("member_"), "{}", frame.text),
                }
                at = offset.max(at);
            }
        }
    }
}

/// The commands of a post, and the number of posts at once. Without a limit their answers are more than the 32 MiB that Redis
/// buffers for a subscriber by its defaults.
const HISTORIES: usize = 100;
const POSTS: usize = 4;

/// The answers of one post had no limit together. A few small posts got some 18 MB each, which went through Redis to the node
/// that had taken the posts, and Redis closed that node's connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unbounded_answers_to_a_post_cut_a_node_off_from_redis() {
    let cluster = Cluster::over_redis(2).start().await;
    let item = json!({"room": "big", "data": "x".repeat(60_000)});
    http::post(cluster.address(0), "/v1/publish", &json!(vec![item; 3])).send().await.expect(200);
    let client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
    let commands: Vec<Value> = (0..HISTORIES).map(|id| json!({"type": "history", "id": id, "room": "big"})).collect();
    let body = json!(commands);
    for reply in join_all((0..POSTS).map(|_| client.command(cluster.address(1), &body))).await {
        let answers = reply.expect(200);
        let answers = answers.as_array().expect("an answer to each");
        let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
        assert_eq!(ids, commands.iter().map(|command| &command["id"]).collect::<Vec<_>>(), "in their order");
        let (given, refused): (Vec<&Value>, Vec<&Value>) =
            answers.iter().partition(|answer| answer["type"] == "history");
        let bytes: usize = given.iter().map(|answer| answer.to_string().len()).sum();
        assert!((512 << 10..=1 << 20).contains(&bytes), "{} histories of {bytes} bytes", given.len());
        assert!(refused.iter().all(|answer| answer["code"] == "message_too_large"), "{:?}", refused[0]);
    }
    for node in &cluster.nodes {
        let again = metric(node.admin, "fanfare_backplane_reconnects_total").await;
        assert!(again < 0.5, "node {} had to connect {again} times more: {}", node.name, node.log());
    }
}

/// While the node of a session reconnected to Redis, a post to that session reached no one, and the client was told that
/// the session was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_was_called_gone_while_its_node_reconnected_to_redis() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(2, addresses).start().await;
    let mut client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
    // The session's node cannot reconnect until the proxy is healed; the other one can at once.
    proxy.set(Fault::Stall);
    assert_ne!(redis.command("CLIENT KILL TYPE pubsub").await, ":0");
    let other = &cluster.nodes[1];
    eventually("the other node is back", async || {
        metric(other.admin, "fanfare_backplane_reconnects_total").await > 0.5
            && metric(other.admin, "fanfare_backplane_up").await > 0.5
    })
    .await;
    let before = info(&redis, "cmdstat_publish:calls=").await;
    let post = http::post(other.listen, client.post(), &json!({"type": "publish", "room": "r", "data": 1}));
    let post = tokio::spawn(post.send());
    eventually("the post was sent and reached no node", async || {
        post.is_finished() || info(&redis, "cmdstat_publish:calls=").await > before
    })
    .await;
    proxy.heal();
    let reply = post.await.expect("a post").expect(200);
    assert_eq!(reply["type"], "published", "{reply}");
    assert_eq!(client.message().await["cursor"], reply["cursor"], "the session was never gone");
}

/// The address with the number of a shard that does not exist: bytes 8 and 9 of 36, in base64.
fn of_no_shard(post: &str) -> String {
    let (path, address) = post.rsplit_once('/').expect("a path");
    assert!(address.len() == 48 && &address[11..12] != "_", "{address}");
    format!("{path}/{}_{}", &address[..11], &address[12..])
}

/// No shard of the addressed node answered a post to a shard number that does not exist. The node that had taken the post
/// waited 8 s for the answer, and a few thousand such posts at once used up all waiting slots.
#[tokio::test]
async fn a_post_to_a_shard_that_does_not_exist_was_never_answered() {
    let cluster = Cluster::over_redis(2).start().await;
    let client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
    for node in &cluster.nodes {
        let reply = http::post(node.listen, &of_no_shard(client.post()), &json!({"type": "ping"})).send().await;
        // Without an answer from the addressed node it would be 503, after 8 s.
        assert_eq!(reply.problem(404), "session_gone", "at node {}", node.name);
    }
    assert_eq!(client.command(cluster.address(1), &json!({"type": "ping"})).await.expect(200), json!({"type": "pong"}));
}

/// A shard's thread ended before the process, and posts for its sessions then waited for 8 s to be answered 503.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_to_sessions_of_a_shard_that_had_ended_waited_in_vain() {
    let mut cluster = Cluster::over_redis(2).drain(8).start().await;
    let (ending, other) = (cluster.address(0), cluster.address(1));
    let request = RoomRequest::of(&["r"]);
    let open = || TransportClient::join(ending, Transport::Stream, &request);
    // Of two shards each has some.
    let mut clients = join_all((0..6).map(|_| open())).await;
    // One shard goes on for this request; the other one has nothing to do any more.
    let unfinished = UnfinishedPublish::begin(ending).await;
    cluster.nodes[0].terminate();
    for client in &mut clients {
        client.ended().await;
    }
    let commands = json!({"type": "leave", "room": "r"});
    let replies = join_all(clients.iter().map(|client| client.command(other, &commands))).await;
    for reply in replies {
        assert_eq!(reply.problem(404), "session_gone");
    }
    assert!(cluster.nodes[0].is_running(), "the node has not ended before");
    unfinished.finish().await;
    cluster.nodes[0].exit(patience()).await;
}

/// A join that waited for its own client to read was answered as if Redis were away; so were the commands behind it, which
/// were never executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posted_join_that_waited_for_its_client_blamed_redis() {
    let cluster = one_node_with(&format!("{KEEP_ALL}outbox_seconds = 600\n")).await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let item = json!({"room": "big", "data": "x".repeat(60_000)});
    for _ in 0..20 {
        http::post(address, "/v1/publish", &json!(vec![item.clone(); 15])).send().await.expect(200);
    }
    // 18 MB: more than the outbox and what the kernel holds for an unread socket.
    let request = RoomRequest::of(&["big"]).with("last=300");
    let mut client = TransportClient::join(address, Transport::Stream, &request).await;
    eventually("the outbox is half full", async || metric(admin, "fanfare_outbox_bytes").await > 131_072.0).await;
    let commands = json!([
        {"type": "ping"},
        {"type": "join", "id": 1, "room": "r", "presence": true},
        {"type": "publish", "id": 2, "room": "r", "data": 1},
    ]);
    let replies = client.command(address, &commands).await.expect(200);
    let code = |index: usize| (&replies[index]["id"], replies[index].get("code").unwrap_or(&replies[index]["type"]));
    assert_eq!(code(0).1, "pong");
    assert_eq!((code(1), code(2)), ((&json!(1), &json!("too_slow")), (&json!(2), &json!("not_executed"))), "{replies}");
    assert_eq!(client.take("joined").await.json["room"], "r", "the join goes on when the client reads");
    let room = http::get(address, "/v1/rooms/r").send().await.expect(200);
    assert_eq!(split(&room["cursor"]).1, 0, "nothing was published: {room}");
}
