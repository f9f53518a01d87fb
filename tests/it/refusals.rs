//! A Redis that answers and refuses: it takes no writes, or an operator has forbidden a command. Each refusal has its
//! reply, its health and one line of the log a second, and what does not need to write goes on.

use std::time::Duration;

use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patient};
use fanfare_tests::{Client, Cluster, http};
use serde_json::{Value, json};

use crate::fixtures::{metric, split};
use crate::sentences::KEEP_ALL;

/// A cluster of one node over this Redis.
async fn node_over(redis: &Redis) -> Cluster {
    Cluster::over_addresses(1, vec![redis.url()]).config(KEEP_ALL).start().await
}

/// Redis has begun to refuse writes: what clients see, and that all is well again after `allow`.
async fn only_writes_are_refused(redis: &Redis, refuse: &[&str], allow: &[&str], new_room: &str) {
    let cluster = node_over(redis).await;
    let address = cluster.address(0);
    let mut member = Client::connect(address).await;
    member.join_with(json!({"room": "a", "presence": true})).await;
    let first = http::post(address, "/v1/rooms/a", &json!(1)).send().await.expect(200)["cursor"].clone();
    member.message().await;
    for command in refuse {
        redis.values(command).await;
    }
    let log_before = cluster.nodes[0].log().lines().count();
    for _ in 0..50 {
        assert_eq!(http::post(address, "/v1/rooms/a", &json!(2)).send().await.problem(503), "backplane_unavailable");
    }
    let lines = cluster.nodes[0].log().lines().skip(log_before).filter(|line| line.contains("refuses")).count();
    assert!((1..=50).contains(&lines), "{lines} lines");
    eventually("health says so", async || {
        http::get(cluster.nodes[0].admin, "/readyz?backplane=1").send().await.status == 503
    })
    .await;
    // What only reads goes on.
    let page = http::get(address, "/v1/rooms/a/history").send().await.expect(200);
    assert_eq!(page["messages"][0]["cursor"], first, "{page}");
    http::get(address, "/v1/rooms/a/presence").send().await.expect(200);
    let mut other = Client::connect(address).await;
    let joined = other.join_with(json!({"room": "a", "since": format!("{}.0", split(&first).0)})).await;
    assert_eq!(joined["resumed"], true, "{joined}");
    assert_eq!(other.message().await["data"], 1);
    let joined = other.ask(json!({"type": "join", "room": "new"})).await;
    assert_eq!(joined.get("code").unwrap_or(&joined["type"]), new_room, "{joined}");
    // A publish with a buffer waits for the end of the refusals.
    let buffered = tokio::spawn(http::post(address, "/v1/rooms/a?buffer=5s", &json!("waited")).send());
    eventually("it waits", async || metric(cluster.nodes[0].admin, "fanfare_publish_buffer_messages").await == 1.0)
        .await;
    for command in allow {
        redis.values(command).await;
    }
    buffered.await.expect("a post").expect(200);
    assert_eq!(member.message().await["data"], "waited");
    eventually("health is back", async || {
        http::get(cluster.nodes[0].admin, "/readyz?backplane=1").send().await.status == 200
    })
    .await;
    let joined = other.join("new").await;
    assert!(joined["cursor"].is_string(), "{joined}");
}

/// Each publish was 500 `internal` and an ERROR line, health stayed up, and joins of new rooms hung.
#[tokio::test]
async fn too_few_replicas_refuse_writes_only() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let (refuse, allow) = (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]);
    // A room that Redis does not know would have to be written.
    only_writes_are_refused(&redis, &refuse, &allow, "backplane_unavailable").await;
}

/// The reads were transactions, which a full Redis refuses like writes.
#[tokio::test]
async fn a_full_memory_refuses_writes_only() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let refuse = ["CONFIG SET maxmemory-policy noeviction", "CONFIG SET maxmemory 1"];
    // A script that has begun with a deletion may write, so members can join.
    only_writes_are_refused(&redis, &refuse, &["CONFIG SET maxmemory 0"], "joined").await;
}

/// Without traffic a node asks by itself whether writes are taken again.
#[tokio::test]
async fn health_is_back_without_a_publish() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let cluster = node_over(&redis).await;
    redis.values("CONFIG SET min-replicas-to-write 1").await;
    let backplane = async || metric(cluster.nodes[0].admin, "fanfare_backplane_up").await;
    http::post(cluster.address(0), "/v1/rooms/a", &json!(1)).send().await.problem(503);
    assert!(backplane().await < 1.0);
    redis.values("CONFIG SET min-replicas-to-write 0").await;
    eventually("the backplane is up", async || backplane().await > 0.0).await;
}

/// One entry that could not be read silenced its room for ever, without a gap; a longer one was sent to all members as it
/// was, and broke their connections.
#[tokio::test]
async fn an_unreadable_entry_of_history_is_a_gap() {
    let header = "0123456789".repeat(4)[..36].to_owned();
    for damaged in ["bad".to_owned(), "damaged ".repeat(8), header.clone(), header + "\\\"data\\\":1\\n"] {
        an_entry_of_history_is_a_gap(&damaged).await;
    }
}

async fn an_entry_of_history_is_a_gap(damaged: &str) {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let address = cluster.address(0);
    let mut member = Client::connect(address).await;
    member.join("a").await;
    let publish = async |data: Value| http::post(address, "/v1/rooms/a", &data).send().await;
    let (epoch, _) = split(&publish(json!(1)).await.expect(200)["cursor"]);
    member.message().await;
    let redis = cluster.redis();
    let stream = redis.values("KEYS fanfare:*:s:a").await.remove(0);
    let meta = stream.replace(":s:", ":m:");
    redis.values(&format!("XADD {stream} 2-0 d \"{damaged}\"")).await;
    redis.values(&format!("HSET {meta} s 2")).await;
    let third = publish(json!(3)).await.expect(200);
    assert_eq!(third["cursor"], json!(format!("{epoch}.3")));
    let gap = member.take("gap").await.json;
    assert_eq!((&gap["from"], &gap["to"]), (&json!(format!("{epoch}.1")), &json!(format!("{epoch}.2"))), "{gap}");
    assert_eq!(member.message().await["data"], 3);
    let mut late = Client::connect(address).await;
    let joined = late.join_with(json!({"room": "a", "since": format!("{epoch}.1")})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]["missed"]), (&json!(false), &json!(1)), "{joined}");
    let page = http::get(address, "/v1/rooms/a/history").send().await.expect(200);
    assert_eq!(page["messages"][0]["data"], 3, "{page}");
    let poll = http::get(address, &format!("/v1/rooms/a/poll?since={epoch}.1")).send().await;
    assert_eq!(poll.status, 200, "{}", poll.text);
    assert!(metric(cluster.nodes[0].admin, "fanfare_backplane_unreadable_total").await > 0.0);
}

/// It waited for the subscription, for as long as Redis was away.
#[tokio::test]
async fn a_join_with_presence_of_a_new_room_got_no_answer_while_redis_was_away() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    client.join("known").await;
    cluster.redis().signal("STOP");
    client.send(json!({"type": "join", "room": "new", "presence": true, "id": 900})).await;
    let answer =
        fanfare_tests::wait::within_time(patient(Duration::from_secs(8)), "an answer", client.take("error")).await;
    assert_eq!((&answer.json["id"], &answer.json["code"]), (&json!(900), &json!("backplane_unavailable")));
    cluster.redis().signal("CONT");
    eventually("joins are served again", async || {
        client.ask(json!({"type": "join", "room": "new", "presence": true})).await["type"] == "joined"
    })
    .await;
}
