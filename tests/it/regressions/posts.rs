//! Commands that are posted while their rooms are busy, while their session's node is hard to reach, and from clients that
//! mean no good.

use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::Transport;
use fanfare_tests::wait::{eventually, patient, within_time};
use fanfare_tests::{Cluster, RoomRequest, TransportClient, http};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{info, metric};
use crate::sentences::KEEP_ALL;
use crate::stage::{one_node_with, publish_numbers, split};

/// Enough for publishes to fall into the same pass of the shard as joins, many times over.
const JOINS: usize = 300;

/// A posted join was done between a message's delivery and the hand-out of its room's batch: the message came twice, or,
/// to a member that joined again, never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posted_join_in_one_pass_with_a_message_repeated_or_lost_it() {
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
                let (kind, place) = (frame.kind().to_owned(), split(&frame.json["cursor"]).1);
                match kind.as_str() {
                    "joined" => assert_eq!(place, at, "{}: a member goes on from where it stood", frame.text),
                    "message" => assert_eq!(place, at + 1, "{}: once and without a hole", frame.text),
                    _ => assert!(kind.starts_with("member_"), "{}", frame.text),
                }
                at = place.max(at);
            }
        }
    }
}

/// Commands in a post, and posts at once: without a bound their answers are more than the 32 MiB that Redis lets wait for a
/// subscriber by its defaults.
const HISTORIES: usize = 100;
const POSTS: usize = 4;

/// A posted `history` was answered without regard to the others of its post, and the answers of a few small posts went as
/// some 18 MB each to the node that had taken them: Redis closed that node's connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_of_a_post_had_no_bound_and_cut_the_node_that_took_it_off_redis() {
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
        let again = metric(node, "fanfare_backplane_reconnects_total").await;
        assert!(again < 0.5, "node {} had to connect {again} times more: {}", node.name, node.log());
    }
}

/// "Nobody hears that node" was taken for "there is no such session": while the connection of a session's node to Redis was
/// coming back, clients were told to give up sessions that lived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_nodes_connection_was_coming_back_was_said_to_be_gone() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(2, addresses).start().await;
    let mut client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
    // The session's node does not come back before it may; the other one does at once.
    proxy.set(Fault::Stall);
    assert_ne!(redis.command("CLIENT KILL TYPE pubsub").await, ":0");
    let other = &cluster.nodes[1];
    eventually("the other node is back", async || {
        metric(other, "fanfare_backplane_reconnects_total").await > 0.5
            && metric(other, "fanfare_backplane_up").await > 0.5
    })
    .await;
    let before = info(&redis, "cmdstat_publish:calls=").await;
    let post = http::post(other.listen, client.post(), &json!({"type": "publish", "room": "r", "data": 1}));
    let post = tokio::spawn(post.send());
    eventually("the post was sent to nobody", async || {
        post.is_finished() || info(&redis, "cmdstat_publish:calls=").await > before
    })
    .await;
    proxy.heal();
    let reply = post.await.expect("a post").expect(200);
    assert_eq!(reply["type"], "published", "{reply}");
    assert_eq!(client.message().await["cursor"], reply["cursor"], "the session was there all along");
}

/// The address with the number of a shard that no node has: bytes 8 and 9 of 36, in base64.
fn of_no_shard(post: &str) -> String {
    let (path, address) = post.rsplit_once('/').expect("a path");
    assert!(address.len() == 48 && &address[11..12] != "_", "{address}");
    format!("{path}/{}_{}", &address[..11], &address[12..])
}

/// At the node that it names, no shard felt responsible for a post to a shard that is none: whoever took it waited 8 s, and
/// a few thousand of them at once left no place for others.
#[tokio::test]
async fn a_post_to_a_shard_that_is_none_was_answered_by_nobody() {
    let cluster = Cluster::over_redis(2).start().await;
    let client = TransportClient::join(cluster.address(0), Transport::Stream, &RoomRequest::of(&["r"])).await;
    for node in &cluster.nodes {
        let post = http::post(node.listen, &of_no_shard(client.post()), &json!({"type": "ping"}));
        // Long before the 8 s after which the one who asks gives up.
        let reply = within_time(patient(Duration::from_secs(4)), "an answer at once", post.send()).await;
        assert_eq!(reply.problem(404), "session_gone", "at node {}", node.name);
    }
    assert_eq!(client.command(cluster.address(1), &json!({"type": "ping"})).await.expect(200), json!({"type": "pong"}));
}
