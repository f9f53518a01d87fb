//! Three nodes over one Redis, which clients reach directly: one order of messages, one history, one presence, and nodes that
//! drain or die. One node with the embedded broker keeps the same promises.

use std::time::Duration;

use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{settle, stop_all};
use fanfare_tests::wait::{patience, patient};
use fanfare_tests::{Client, Cluster, Target};
use serde_json::json;

use crate::sentences::{self, KEEP_ALL, judge, members, rooms};

async fn three_nodes() -> Cluster {
    Cluster::over_redis(3).config(KEEP_ALL).start().await
}

#[tokio::test]
async fn a_single_node_keeps_the_promises_of_a_cluster() {
    let cluster = Cluster::embedded().config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    sentences::a_publish_right_after_joined_comes(&target).await;
    sentences::all_agree_on_one_order(&target).await;
    sentences::history_is_the_same_everywhere(&target).await;
    sentences::presence_is_the_same_everywhere(&target).await;
    sentences::kicks_reach_every_node(&target).await;
}

#[tokio::test]
async fn on_a_single_node_a_join_amid_publishes_misses_nothing() {
    let cluster = Cluster::embedded().config(KEEP_ALL).start().await;
    sentences::a_join_amid_publishes_misses_nothing_after_its_cursor(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn on_a_single_node_a_resume_loses_and_repeats_nothing() {
    let cluster = Cluster::embedded().config(KEEP_ALL).start().await;
    sentences::a_resume_on_another_node_loses_and_repeats_nothing(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn three_nodes_agree_on_one_order_under_concurrent_publishers() {
    let cluster = three_nodes().await;
    sentences::all_agree_on_one_order(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn a_publish_at_any_node_right_after_joined_is_delivered() {
    let cluster = three_nodes().await;
    sentences::a_publish_right_after_joined_comes(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn a_join_amid_publishes_misses_nothing_after_its_cursor() {
    let cluster = three_nodes().await;
    sentences::a_join_amid_publishes_misses_nothing_after_its_cursor(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn a_resume_on_another_node_loses_and_repeats_nothing() {
    let cluster = three_nodes().await;
    sentences::a_resume_on_another_node_loses_and_repeats_nothing(&Target::direct(&cluster)).await;
}

#[tokio::test]
async fn history_presence_and_kicks_span_the_cluster() {
    let cluster = three_nodes().await;
    let target = Target::direct(&cluster);
    sentences::history_is_the_same_everywhere(&target).await;
    sentences::presence_is_the_same_everywhere(&target).await;
    sentences::kicks_reach_every_node(&target).await;
}

#[tokio::test]
async fn the_same_key_at_two_nodes_publishes_once() {
    let cluster = three_nodes().await;
    let mut one = Client::connect(cluster.address(0)).await;
    let mut other = Client::connect(cluster.address(1)).await;
    let start = one.join("a").await["cursor"].clone();
    for n in 0..50 {
        let publish = |key: &str| json!({"room": "a", "data": n, "key": key});
        let key = format!("k{n}");
        let (first, second) = (publish(&key), publish(&key));
        let (first, second) = tokio::join!(one.publish_with(first), other.publish_with(second));
        assert_eq!(first["cursor"], second["cursor"], "{n}");
    }
    let expected: Vec<_> = (0..50).map(|n| json!(n)).collect();
    assert_eq!(one.data(50).await, expected);
    other.join_with(json!({"room": "a", "since": start})).await;
    assert_eq!(other.data(50).await, expected);
    assert!(one.so_far().await.is_empty() && other.so_far().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_members_lose_nothing_of_twenty_thousand_publishes() {
    let cluster = three_nodes().await;
    sentences::nothing_is_lost_under_load(&Target::direct(&cluster), 300, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_drained_node_resume_elsewhere_and_the_node_exits() {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).drain(4).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(6);
    let members = members(&target, 36, &rooms).await;
    let pace = Duration::from_millis(4);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 6_000, window: 4, pace };
    let running = load.start();
    running.reaches(500).await;

    cluster.nodes[0].terminate();
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());

    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published == 6_000, "{verdict}");
    for report in &reports {
        let was_there = report.nodes[0] == "a";
        assert_eq!(report.nodes.len() > 1, was_there, "only the members of the drained node move: {:?}", report.nodes);
        if was_there {
            assert_eq!(report.closes.first(), Some(&Some(1012)), "{:?}", report.closes);
            assert!(report.reconnect_hints >= 1);
        }
    }
    assert!(reports.iter().filter(|report| report.nodes[0] == "a").count() >= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_killed_node_resume_elsewhere_and_lose_nothing() {
    let mut cluster = three_nodes().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(6);
    let members = members(&target, 36, &rooms).await;
    let pace = Duration::from_millis(4);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 4_000, window: 4, pace };
    let running = load.start();
    running.reaches(500).await;
    cluster.nodes[1].kill();
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published == 4_000, "{verdict}");
    assert!(reports.iter().all(|report| report.nodes.last().is_some_and(|node| node != "b")));
}

#[tokio::test]
async fn members_of_a_killed_node_leave_the_presence_list() {
    let mut cluster = three_nodes().await;
    let mut watcher = Client::connect(cluster.address(0)).await;
    watcher.join_with(json!({"room": "a", "presence": true})).await;
    let mut dying = Client::connect(cluster.address(1)).await;
    dying.join("a").await;
    let user = dying.session();
    cluster.nodes[1].kill();
    let mut left = None;
    // A node counts as dead after 10 s without a heartbeat; then another node removes its members.
    let limit = patient(Duration::from_secs(20));
    fanfare_tests::wait::within_time(limit, "the members of the dead node are removed", async {
        while left.is_none() {
            if let Ok(frame) = watcher.try_next().await {
                left = (frame.kind() == "member_left").then_some(frame.json);
            }
        }
    })
    .await;
    assert_eq!(left.map(|frame| frame["member"]["user"].clone()), Some(json!(user)));
    let reply = watcher.ask(json!({"type": "presence", "room": "a"})).await;
    assert_eq!(reply["count"], 1, "{reply}");
}
