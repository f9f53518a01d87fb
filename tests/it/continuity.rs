//! How rooms survive a loss: many resumes at once, keys that Redis has evicted, publishes that wait while Redis is away, and
//! reconnect times that differ from client to client.

use std::collections::{BTreeMap, HashSet};

use fanfare_tests::redis::Redis;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, http, prometheus};
use serde_json::{Value, json};

use crate::fixtures::{metric, one_node, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// The number of history reads that Redis has served so far.
async fn reads(redis: &Redis) -> u64 {
    let script = "local n = 0 \
                  for c in string.gmatch(redis.call('INFO', 'commandstats'), 'cmdstat_x%a*range:calls=(%d+)') \
                  do n = n + c end return n";
    let answer = redis.command(&format!("EVAL \"{script}\" 0")).await;
    answer.strip_prefix(':').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number: {answer}"))
}

/// Deletes one of a room's keys: `m` is its head, `s` its messages.
async fn evict(redis: &Redis, kind: char, room: &str) {
    let script = format!(
        "local keys = redis.call('KEYS', '*:{kind}:{room}') \
         for _, key in ipairs(keys) do redis.call('DEL', key) end return #keys"
    );
    assert_eq!(redis.command(&format!("EVAL \"{script}\" 0")).await, ":1", "the room had this key");
}

async fn metric_is(cluster: &Cluster, name: &str, expected: usize) {
    eventually(&format!("{name} is {expected}"), async || {
        (metric(cluster.nodes[0].admin, name).await - expected as f64).abs() < 0.1
    })
    .await;
}

/// A room with members on every shard of the only node, and then `count` messages.
async fn room_with_messages(cluster: &Cluster, count: usize) -> (Vec<Client>, Value) {
    let (mut stayed, mut since) = (Vec::new(), json!(null));
    for _ in 0..4 {
        let mut client = Client::connect(cluster.address(0)).await;
        since = client.join("storm").await["cursor"].clone();
        stayed.push(client);
    }
    publish_numbers(cluster, "storm", 0, count).await;
    for client in &mut stayed {
        client.data(count).await;
    }
    (stayed, since)
}

/// Lets `clients` clients resume after `since` at once, and checks that each of them gets all missed messages.
async fn storm(cluster: &Cluster, clients: usize, since: &Value, missed: usize) {
    let mut storm = Vec::new();
    for _ in 0..clients {
        storm.push(Client::connect(cluster.address(0)).await);
    }
    for client in &mut storm {
        client.send(json!({"type": "join", "room": "storm", "since": since})).await;
    }
    let all: Vec<Value> = (0..missed).map(|n| json!(n)).collect();
    for client in &mut storm {
        assert_eq!(client.take("joined").await.json["resumed"], json!(true));
        assert_eq!(client.data(missed).await, all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumes_from_the_memory_of_a_node_read_nothing_from_redis() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let (_stayed, since) = room_with_messages(&cluster, 50).await;
    let before = reads(cluster.redis()).await;
    storm(&cluster, 300, &since, 50).await;
    assert_eq!(reads(cluster.redis()).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_resumes_from_further_back_share_their_reads() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let (_stayed, since) = room_with_messages(&cluster, 250).await;
    let before = reads(cluster.redis()).await;
    storm(&cluster, 300, &since, 250).await;
    let reads = reads(cluster.redis()).await - before;
    // A resume needs three pages: 900 reads if each client had its own.
    assert!((3..=90).contains(&reads), "{reads} reads");
}

#[tokio::test]
async fn an_evicted_room_head_is_reported_as_a_gap() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let mut member = Client::connect(cluster.address(0)).await;
    member.join("quiet").await;
    let last = member.publish("quiet", json!(1)).await["cursor"].clone();
    member.message().await;
    evict(cluster.redis(), 'm', "quiet").await;
    cluster.redis().command("CLIENT KILL TYPE pubsub").await;
    let gap = member.take("gap").await.json;
    assert_eq!((&gap["room"], &gap["from"]), (&json!("quiet"), &last), "{gap}");
    assert_ne!(split(&gap["to"]).0, split(&last).0, "offsets of the old epoch are never used again");
    let mut late = Client::connect(cluster.address(0)).await;
    let joined = late.join_with(json!({"room": "quiet", "since": last})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]), (&json!(false), &json!({"missed": null})), "{joined}");
}

#[tokio::test]
async fn evicted_messages_are_a_gap_only_for_a_member_that_resumes() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let begin = member.join("past").await["cursor"].clone();
    member.publish("past", json!(1)).await;
    member.message().await;
    evict(cluster.redis(), 's', "past").await;
    let second = member.publish("past", json!(2)).await["cursor"].clone();
    assert_eq!(split(&second), (split(&begin).0, 2), "offsets continue");
    assert_eq!(member.message().await["cursor"], second, "a member that stayed misses nothing");
    let history = http::get(cluster.address(0), &format!("/v1/rooms/past/history?since={}", begin.as_str().unwrap()));
    let page = history.send().await.expect(200);
    assert_eq!((&page["gap"], page["messages"].as_array().map(Vec::len)), (&json!({"missed": 1}), Some(1)), "{page}");
}

#[tokio::test]
async fn after_a_flush_all_members_are_listed_again() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let mut members = Vec::new();
    for node in 0..2 {
        let mut member = Client::connect(cluster.address(node)).await;
        member.join("a").await;
        members.push(member);
    }
    let users = async |cluster: &Cluster| {
        http::get(cluster.address(0), "/v1/rooms/a/presence").send().await.expect(200)["count"].clone()
    };
    eventually("both are there", async || users(&cluster).await == 2).await;
    cluster.redis().command("FLUSHALL").await;
    eventually("both are there again", async || users(&cluster).await == 2).await;
}

// Buffered publishes.

#[tokio::test]
async fn buffered_publishes_come_in_order_and_once_when_redis_is_back() {
    const COUNT: usize = 10;
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let mut member = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    cluster.redis().kill();
    metric_is(&cluster, "fanfare_backplane_up", 0).await;
    let mut posts = Vec::new();
    for n in 0..COUNT {
        let post = http::post(cluster.address(0), "/v1/rooms/a?buffer=5s", &json!(n));
        posts.push(tokio::spawn(post.send()));
        metric_is(&cluster, "fanfare_publish_buffer_messages", n + 1).await;
    }
    cluster.redis().start_empty().await;
    let mut offsets = Vec::new();
    for post in posts {
        let receipt = post.await.expect("a post").expect(200);
        offsets.push(split(&receipt["cursor"]).1);
    }
    assert_eq!(offsets, (1..=COUNT as u64).collect::<Vec<_>>());
    assert_eq!(member.data(COUNT).await, (0..COUNT).map(|n| json!(n)).collect::<Vec<_>>());
    http::post(cluster.address(0), "/v1/rooms/a", &json!("last")).send().await.expect(200);
    assert_eq!(member.data(1).await, [json!("last")], "no message came twice");
    metric_is(&cluster, "fanfare_publish_buffer_messages", 0).await;
}

/// Redis may have taken the first attempt without acknowledging it. The retry finds that by its key, which the gateway makes
/// up if the publisher sent none.
#[tokio::test]
async fn a_publish_buffered_through_a_stall_is_published_once() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let mut member = Client::connect(cluster.address(0)).await;
    member.join("a").await;
    cluster.redis().signal("STOP");
    let post = tokio::spawn(http::post(cluster.address(0), "/v1/rooms/a?buffer=5s", &json!(1)).send());
    metric_is(&cluster, "fanfare_publish_buffer_messages", 1).await;
    metric_is(&cluster, "fanfare_backplane_up", 0).await;
    cluster.redis().signal("CONT");
    let receipt = post.await.expect("a post").expect(200);
    assert_eq!(split(&receipt["cursor"]).1, 1);
    let last = http::post(cluster.address(0), "/v1/rooms/a?buffer=5s", &json!("last")).send().await.expect(200);
    assert_eq!(split(&last["cursor"]).1, 2);
    assert_eq!(member.data(2).await, [json!(1), json!("last")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_publish_buffer_refuses_and_a_publish_that_waited_too_long_fails() {
    /// Of 1 MB each: few more than fit, because they have to come before the first has waited for its 5 s.
    const POSTS: usize = 20;
    let large_messages = "[limits]\nmessage_bytes = 1000000\noutbox_bytes = 2000000\n";
    let mut cluster = Cluster::over_redis(1).config(large_messages).start().await;
    cluster.redis().kill();
    metric_is(&cluster, "fanfare_backplane_up", 0).await;
    let large = json!("x".repeat(990_000));
    let posts: Vec<_> = (0..POSTS)
        .map(|_| tokio::spawn(http::post(cluster.address(0), "/v1/rooms/a?buffer=5s", &large).send()))
        .collect();
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for post in posts {
        *codes.entry(post.await.expect("a post").problem(503)).or_default() += 1;
    }
    let refused = codes.get("backplane_overloaded").copied().unwrap_or_default();
    assert!(refused > 0, "the buffer holds 16 MiB, which is less: {codes:?}");
    assert_eq!(refused + codes["backplane_unavailable"], POSTS, "{codes:?}");
    metric_is(&cluster, "fanfare_publish_buffer_refused_total", refused).await;
    metric_is(&cluster, "fanfare_publish_buffer_bytes", 0).await;
}

#[tokio::test]
async fn an_invalid_buffer_time_is_refused() {
    let cluster = one_node().await;
    for buffer in ["6s", "0s", "5", "soon", ""] {
        let post = http::post(cluster.address(0), &format!("/v1/rooms/a?buffer={buffer}"), &json!(1)).send().await;
        assert_eq!(post.problem(400), "bad_request", "{buffer}");
    }
    let batch = json!([{"room": "a", "data": 1}, {"room": "a", "data": 2}]);
    let receipts = http::post(cluster.address(0), "/v1/publish?buffer=1s", &batch).send().await.expect(200);
    assert_eq!((split(&receipts[0]["cursor"]).1, split(&receipts[1]["cursor"]).1), (1, 2));
}

// Limits, and reconnect times.

#[tokio::test]
async fn requests_beyond_their_rate_are_counted_under_their_own_label() {
    let cluster = one_node().await;
    let mut client = Client::connect(cluster.address(0)).await;
    let mut refused = 0;
    // 500 a second are served. Without waiting for the answers in between, any machine sends more; 20,000 without a
    // refusal show that nothing limits them.
    'rounds: for _ in 0..100 {
        // After 20 refusals the connection ends.
        for id in 0..200 {
            let history = json!({"type": "history", "id": id, "room": "a", "limit": 1});
            let _ = client.try_send(history.to_string().into()).await;
        }
        for _ in 0..200 {
            let Ok(frame) = client.try_next().await else { break 'rounds };
            if frame.kind() == "error" {
                assert_eq!(frame.json["code"], "rate_limited", "{}", frame.text);
                assert_eq!(frame.json["room"], "a", "{}", frame.text);
                refused += 1;
            }
        }
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "no request was refused before the connection ended or 20,000 were answered");
    let reply = http::get(cluster.nodes[0].admin, "/metrics").send().await;
    let scrape = prometheus::parse(&reply.text).expect("a valid scrape");
    let of = |what: &str| {
        let label = format!("what=\"{what}\"");
        let labelled = scrape.series("fanfare_rate_limited_total").filter(|(series, _)| series.contains(&label));
        labelled.map(|(_, count)| count).sum::<f64>()
    };
    assert!(of("request") >= f64::from(refused) && of("publish") < 0.5, "{}", reply.text);
}

#[tokio::test]
async fn clients_of_a_draining_node_get_different_reconnect_times() {
    let cluster = one_node().await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(Client::connect(cluster.address(0)).await);
    }
    cluster.nodes[0].terminate();
    let mut hints = HashSet::new();
    for client in &mut clients {
        let hint = client.take("reconnect").await.json;
        assert_eq!(hint["reason"], "draining", "{hint}");
        hints.insert(hint["after_ms"].as_u64().expect("a time"));
        assert_eq!(client.ended().await.code, Some(1012));
    }
    // Times are drawn evenly from 200 ms: 40 of them have fewer than 20 values with a probability below 10^-9.
    assert!(hints.len() >= 20 && hints.iter().all(|hint| *hint < 200), "{hints:?}");
}
