//! Redis is killed, stalls or loses its data: clients stay connected, publishes are refused, and members get a gap for every
//! message that they may have missed.

use std::time::Duration;

use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{settle, stop_all};
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, Target, http, prometheus};
use serde_json::json;

use crate::fixtures::{metric, split};
use crate::sentences::{KEEP_ALL, judge, members, rooms};

async fn two_nodes() -> Cluster {
    Cluster::over_redis(2).config(KEEP_ALL).start().await
}

/// Repeats a publish until it is acknowledged.
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
async fn while_redis_is_away_publishes_are_refused_and_clients_stay_connected() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut publisher = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    publisher.publish("a", json!(1)).await;
    assert_eq!(member.data(1).await, [json!(1)]);
    cluster.redis().kill();
    for _ in 0..3 {
        let reply = publisher.ask(json!({"type": "publish", "room": "a", "data": 2})).await;
        assert_eq!((&reply["code"], &reply["retryable"]), (&json!("backplane_unavailable"), &json!(true)), "{reply}");
    }
    let over_http = http::post(cluster.address(0), "/v1/rooms/a", &json!(2)).send().await;
    assert_eq!(over_http.problem(503), "backplane_unavailable");
    assert!(!over_http.header("retry-after").is_empty());
    for client in [&mut member, &mut publisher] {
        assert_eq!(client.ask(json!({"type": "ping"})).await["type"], "pong");
    }
    assert!(Client::connect(cluster.address(0)).await.session().len() >= 8, "new clients can connect");
}

#[tokio::test]
async fn health_and_metrics_show_when_redis_is_away_and_back() {
    let mut cluster = two_nodes().await;
    let admin = cluster.nodes[0].admin;
    let up = async |expected: f64| {
        eventually(&format!("backplane_up is {expected}"), async || {
            (metric(admin, "fanfare_backplane_up").await - expected).abs() < 0.1
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
async fn after_an_empty_restart_members_get_a_gap_and_delivery_goes_on() {
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
    assert_ne!(epoch, split(&last).0, "offsets of the old epoch are never used again");
    assert_eq!(to, 0, "the gap ends before the first message of the new epoch: {gap}");
    let message = member.message().await;
    assert_eq!((&message["cursor"], &message["data"]), (&published["cursor"], &json!("back")));
    assert_eq!(split(&message["cursor"]), (epoch, to + 1), "delivery continues right after the gap");
    let mut late = Client::connect(cluster.address(1)).await;
    let joined = late.join_with(json!({"room": "a", "since": last})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]), (&json!(false), &json!({"missed": null})), "{joined}");
}

#[tokio::test]
async fn members_of_a_quiet_room_get_the_gap_too() {
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
async fn a_join_while_redis_is_away_is_answered_once_it_is_back() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    cluster.redis().kill();
    member.send(json!({"type": "join", "id": 7, "room": "late"})).await;
    assert!(member.so_far().await.iter().all(|frame| frame.kind() != "joined"), "the room cannot be joined yet");
    cluster.redis().start_empty().await;
    let joined = member.take("joined").await.json;
    assert_eq!((&joined["room"], &joined["id"]), (&json!("late"), &json!(7)), "{joined}");
    publish_when_back(&mut member, "late").await;
    assert_eq!(member.data(1).await, [json!("back")]);
}

#[tokio::test]
async fn while_redis_stalls_publishes_are_refused_and_pings_answered() {
    let mut cluster = two_nodes().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut publisher = Client::connect(cluster.address(1)).await;
    member.join("a").await;
    cluster.redis().signal("STOP");
    let reply = publisher.ask(json!({"type": "publish", "room": "a", "data": 1, "key": "k"})).await;
    assert_eq!((&reply["type"], &reply["retryable"]), (&json!("error"), &json!(true)), "{reply}");
    assert_eq!(member.ask(json!({"type": "ping"})).await["type"], "pong");
    cluster.redis().signal("CONT");
    eventually("the retry with the same key is acknowledged", async || {
        let retry = publisher.ask(json!({"type": "publish", "room": "a", "data": 1, "key": "k"})).await;
        retry["type"] == "published"
    })
    .await;
    publish_when_back(&mut publisher, "a").await;
    assert_eq!(member.data(2).await, [json!(1), json!("back")], "the retry adds no second message");
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
        running.reaches(kill * 500).await;
        let killed = cluster.redis().command("CLIENT KILL TYPE pubsub").await;
        assert_ne!(killed, ":0", "there were subscribers to kill");
    }
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published == 4_000, "{verdict}");
    assert!(reports.iter().all(|report| report.nodes.len() == 1), "no client had to reconnect");
}

/// How often rooms have begun a new epoch under their members, at all nodes together.
async fn epochs_told(cluster: &Cluster) -> f64 {
    let mut told = 0.0;
    for node in &cluster.nodes {
        let scrape = prometheus::parse(&http::get(node.admin, "/metrics").send().await.text).expect("a valid scrape");
        let gaps = scrape.series("fanfare_backplane_gaps_total");
        told += gaps.filter(|(series, _)| series.contains("cause=\"epoch\"")).map(|(_, count)| count).sum::<f64>();
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_loses_its_data_under_load_causes_no_silent_loss() {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(10);
    let members = members(&target, 30, &rooms).await;
    let pace = Duration::from_millis(3);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 3_000, window: 4, pace };
    let running = load.start();
    running.reaches(1_000).await;
    cluster.redis().kill();
    cluster.redis().start_empty().await;
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.reports_every_loss() && verdict.published == 3_000, "{verdict}");
    assert!(verdict.gaps >= 30, "every member got a gap: {verdict}");
    assert!(epochs_told(&cluster).await >= 10.0, "each of the rooms has begun a new epoch at some node");
    assert!(reports.iter().all(|report| report.nodes.len() == 1), "no client had to reconnect");
}
