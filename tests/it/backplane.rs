//! When Redis goes away, stalls or forgets: clients stay, publishers are told at once, and nobody loses in silence.

use std::time::Duration;

use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{settle, stop_all};
use fanfare_tests::wait::{eventually, patient, within_time};
use fanfare_tests::{Client, Cluster, Target, http, prometheus};
use serde_json::json;

use crate::sentences::{KEEP_ALL, judge, members, rooms};
use crate::stage::split;

/// "Within a second", with room for a loaded machine.
const SOON: Duration = Duration::from_secs(2);

async fn two_nodes() -> Cluster {
    Cluster::over_redis(2).config(KEEP_ALL).start().await
}

/// Publishes until it is acknowledged again.
async fn publish_when_back(client: &mut Client, room: &str) -> serde_json::Value {
    let mut reply = json!(null);
    eventually("publishes are acknowledged again", async || {
        reply = client.ask(json!({"type": "publish", "room": room, "data": "back"})).await;
        reply["type"] == "published"
    })
    .await;
    reply
}

#[tokio::test]
async fn without_redis_publishers_are_told_within_a_second_and_clients_stay() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut publisher = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    publisher.publish("a", json!(1)).await;
    assert_eq!(member.data(1).await, [json!(1)]);
    cluster.redis().kill();
    for _ in 0..3 {
        let publish = publisher.ask(json!({"type": "publish", "room": "a", "data": 2}));
        let reply = within_time(patient(SOON), "an answer to a publish without Redis", publish).await;
        assert_eq!((&reply["code"], &reply["retryable"]), (&json!("backplane_unavailable"), &json!(true)), "{reply}");
    }
    let over_http = http::post(cluster.address(0), "/v1/rooms/a", &json!(2)).send();
    let over_http = within_time(patient(SOON), "an answer over HTTP without Redis", over_http).await;
    assert_eq!(over_http.problem(503), "backplane_unavailable");
    assert!(!over_http.header("retry-after").is_empty());
    for client in [&mut member, &mut publisher] {
        assert_eq!(client.ask(json!({"type": "ping"})).await["type"], "pong");
    }
    assert!(Client::connect(cluster.address(0)).await.session().len() >= 8, "new clients are welcome");
}

#[tokio::test]
async fn health_and_metrics_say_that_redis_is_away_and_back() {
    let mut cluster = two_nodes().await;
    let admin = cluster.nodes[0].admin;
    let up = async |expected: f64| {
        eventually(&format!("backplane_up is {expected}"), async || {
            let text = http::get(admin, "/metrics").send().await.text;
            (prometheus::parse(&text).expect("a valid scrape").sum("fanfare_backplane_up") - expected).abs() < 0.1
        })
        .await;
    };
    up(1.0).await;
    assert_eq!(http::get(admin, "/readyz?backplane=1").send().await.status, 200);
    cluster.redis().kill();
    up(0.0).await;
    let ready = http::get(admin, "/readyz").send().await;
    assert_eq!((ready.status, &ready.json()["backplane"]), (200, &json!("down")), "{}", ready.text);
    assert_eq!(http::get(admin, "/readyz?backplane=1").send().await.status, 503);
    assert_eq!(http::get(admin, "/livez").send().await.status, 200);
    cluster.redis().start_empty().await;
    up(1.0).await;
    assert_eq!(http::get(admin, "/readyz?backplane=1").send().await.status, 200);
}

#[tokio::test]
async fn after_an_empty_restart_members_are_told_the_gap_and_delivery_goes_on() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut publisher = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    let last = publisher.publish("a", json!(1)).await["cursor"].clone();
    assert_eq!(member.data(1).await, [json!(1)]);
    cluster.redis().kill();
    cluster.redis().start_empty().await;
    let published = publish_when_back(&mut publisher, "a").await;
    let gap = member.take("gap").await.json;
    assert_eq!((&gap["room"], &gap["from"]), (&json!("a"), &last), "{gap}");
    let (epoch, to) = split(&gap["to"]);
    assert_ne!(epoch, split(&last).0, "the old epoch's offsets are never used again");
    assert_eq!(
        to, 0,
        "what the new history has is not gone, even if it was published before this node was back: {gap}"
    );
    let message = member.message().await;
    assert_eq!((&message["cursor"], &message["data"]), (&published["cursor"], &json!("back")));
    assert_eq!(split(&message["cursor"]), (epoch, to + 1), "delivery goes on right after the gap");
    let mut late = Client::connect(cluster.address(1)).await;
    let joined = late.join_with(json!({"room": "a", "since": last})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]), (&json!(false), &json!({"missed": null})), "{joined}");
}

#[tokio::test]
async fn a_quiet_room_is_told_the_gap_too() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    member.join("quiet").await;
    member.publish("quiet", json!(1)).await;
    member.message().await;
    cluster.redis().kill();
    cluster.redis().start_empty().await;
    assert_eq!(member.take("gap").await.json["room"], "quiet");
}

#[tokio::test]
async fn a_join_without_redis_is_answered_once_it_is_back() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    cluster.redis().kill();
    member.send(json!({"type": "join", "id": 7, "room": "late"})).await;
    assert!(member.so_far().await.iter().all(|frame| frame.kind() != "joined"), "nothing to join yet");
    cluster.redis().start_empty().await;
    let joined = member.take("joined").await.json;
    assert_eq!((&joined["room"], &joined["id"]), (&json!("late"), &json!(7)), "{joined}");
    publish_when_back(&mut member, "late").await;
    assert_eq!(member.data(1).await, [json!("back")]);
}

#[tokio::test]
async fn while_redis_stalls_publishers_are_told_and_pings_are_answered() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut publisher = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    cluster.redis().signal("STOP");
    let publish = publisher.ask(json!({"type": "publish", "room": "a", "data": 1, "key": "k"}));
    let reply = within_time(patient(SOON), "an answer to a publish while Redis stalls", publish).await;
    assert_eq!((&reply["type"], &reply["retryable"]), (&json!("error"), &json!(true)), "{reply}");
    let ping = member.ask(json!({"type": "ping"}));
    within_time(patient(SOON), "a pong while Redis stalls", ping).await;
    cluster.redis().signal("CONT");
    eventually("the retry with the same key is acknowledged", async || {
        let retry = publisher.ask(json!({"type": "publish", "room": "a", "data": 1, "key": "k"})).await;
        retry["type"] == "published"
    })
    .await;
    publish_when_back(&mut publisher, "a").await;
    assert_eq!(member.data(2).await, [json!(1), json!("back")], "once, whatever became of the first try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_subscriber_connections_lose_nothing_under_load() {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(10);
    let members = members(&target, 30, &rooms).await;
    let pace = Duration::from_millis(3);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 4_000, window: 4, pace };
    let running = load.start();
    for kill in 1..=5 {
        eventually("the load goes on", async || running.acknowledged() > kill * 500).await;
        let killed = cluster.redis().command("CLIENT KILL TYPE pubsub").await;
        assert_ne!(killed, ":0", "there were subscribers to kill");
    }
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published == 4_000, "{verdict}");
    assert!(reports.iter().all(|report| report.nodes.len() == 1), "no client noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_everything_under_load_loses_nothing_in_silence() {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(10);
    let members = members(&target, 30, &rooms).await;
    let pace = Duration::from_millis(3);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 3_000, window: 4, pace };
    let running = load.start();
    eventually("the load is under way", async || running.acknowledged() > 1_000).await;
    cluster.redis().kill();
    cluster.redis().start_empty().await;
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.reports_every_loss() && verdict.published == 3_000, "{verdict}");
    assert!(verdict.gaps >= 30, "every member was told: {verdict}");
    assert!(reports.iter().all(|report| report.nodes.len() == 1), "no client was disconnected");
}
