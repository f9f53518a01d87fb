//! Tests that hold however clients reach a cluster: at the nodes themselves or through nginx. `cluster` and
//! `through_nginx` call them with their targets; none depends on which target it got.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_tests::crowd::Crowd;
pub(crate) use fanfare_tests::crowd::{KEEP_ALL, members, rooms};
use fanfare_tests::history::{MemberLog, Seen, Verdict, check};
use fanfare_tests::load::{Load, Timing, heads, percentile};
use fanfare_tests::member::{Report, settle, stop_all};
pub(crate) use fanfare_tests::scenario::print_line;
use fanfare_tests::{Client, Target, http};
use serde_json::{Value, json};

use crate::fixtures::split;

/// Checks the logs and prints the verdict.
pub(crate) fn judge(target: &Target, published: &[fanfare_tests::history::Published], reports: &[Report]) -> Verdict {
    let logs: Vec<MemberLog> = reports.iter().map(|report| report.log.clone()).collect();
    let verdict = check(published, &logs);
    print_line(&format!("{verdict} over {}", target.name));
    for finding in &verdict.findings {
        print_line(&format!("  {finding}"));
    }
    verdict
}

/// Every member sees the same publications in the same order, while six publishers at different nodes publish at once.
pub(crate) async fn all_agree_on_one_order(target: &Target) {
    let rooms = rooms(1);
    let members = members(target, 6, &rooms).await;
    let load = Load { target: target.clone(), publishers: 6, rooms, total: 1_200, window: 8, pace: Duration::ZERO };
    let published = load.start().finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let order = |report: &Report| -> Vec<u64> {
        let seen = report.log.rooms.values().flatten();
        seen.filter_map(|seen| if let Seen::Message { id, .. } = seen { Some(*id) } else { None }).collect()
    };
    let first = order(&reports[0]);
    assert_eq!(first.len(), 1_200);
    for report in &reports {
        assert_eq!(order(report), first, "{}", report.log.name);
    }
    assert!(judge(target, &published, &reports).has_no_loss());
}

/// A message that another node publishes right after `joined` is delivered.
pub(crate) async fn a_publish_right_after_joined_comes(target: &Target) {
    let mut publisher = Client::connect(target.address(1)).await;
    for n in 0..150 {
        let room = format!("fresh:{n}");
        let mut member = Client::open(target.address(n), &format!("/ws?room={room}")).await;
        member.take("joined").await;
        publisher.publish(&room, json!(n)).await;
        assert_eq!(member.data(1).await, [json!(n)]);
    }
}

/// A client that joins while others publish gets every message after the cursor of `joined`.
pub(crate) async fn a_join_amid_publishes_misses_nothing_after_its_cursor(target: &Target) {
    /// Far more than are published before the last join, so that the load lasts as long as it is needed.
    const ENOUGH: u64 = 100_000;
    let rooms = rooms(1);
    let pace = Duration::from_millis(1);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: ENOUGH, window: 4, pace };
    let running = load.start();
    let mut member = Client::connect(target.address(0)).await;
    for join in 0..100 {
        let (epoch, joined) = split(&member.join("room:0").await["cursor"]);
        for step in 1..=3 {
            let next = split(&member.message().await["cursor"]);
            assert_eq!(next, (epoch.clone(), joined + step), "join number {join}");
        }
        member.leave("room:0").await;
        member.so_far().await;
    }
    running.wind_down();
    running.finish().await;
}

/// A client that resumes at another node again and again sees each publication once and in order.
pub(crate) async fn a_resume_on_another_node_loses_and_repeats_nothing(target: &Target) {
    let rooms = rooms(1);
    let pace = Duration::from_millis(1);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 2_000, window: 4, pace };
    let mut client = Client::connect(target.address(0)).await;
    let start = client.join("room:0").await["cursor"].clone();
    let running = load.start();
    let (epoch, mut at) = split(&start);
    for hop in 1..=25 {
        for _ in 0..40 {
            at += 1;
            assert_eq!(split(&client.message().await["cursor"]), (epoch.clone(), at), "hop {hop}");
        }
        // Dropped without a close: what was under way to it is lost, and is sent again after the cursor.
        client = Client::connect(target.address(hop)).await;
        let since = format!("{epoch}.{at}");
        let joined = client.join_with(json!({"room": "room:0", "since": since})).await;
        assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &json!(since)), "hop {hop}: {joined}");
    }
    running.finish().await;
    while at < 2_000 {
        at += 1;
        assert_eq!(split(&client.message().await["cursor"]), (epoch.clone(), at));
    }
}

/// History has the same text at every node.
pub(crate) async fn history_is_the_same_everywhere(target: &Target) {
    let mut writers = [Client::connect(target.address(0)).await, Client::connect(target.address(1)).await];
    for n in 0..20 {
        writers[n % 2].publish("a", json!({"n": n, "f": 1.0})).await;
    }
    let mut texts = BTreeSet::new();
    for index in 0..3 {
        let reply = http::get(target.address(index), "/v1/rooms/a/history").send().await;
        assert_eq!(reply.expect(200)["messages"].as_array().map(Vec::len), Some(20));
        texts.insert(reply.text);
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
}

/// Presence counts every session of the cluster once, and a lost connection is a leave at every node.
pub(crate) async fn presence_is_the_same_everywhere(target: &Target) {
    let mut watcher = Client::connect(target.address(2)).await;
    watcher.join_with(json!({"room": "a", "presence": true})).await;
    let mut others = Vec::new();
    for index in 0..3 {
        let mut client = Client::connect(target.address(index)).await;
        client.join("a").await;
        others.push(client);
    }
    for other in &others {
        member_event(&mut watcher, "member_joined", &other.session()).await;
    }
    let mut expected: Vec<String> = others.iter().map(|client| client.session()).collect();
    expected.push(watcher.session());
    expected.sort();
    for index in 0..3 {
        let reply = http::get(target.address(index), "/v1/rooms/a/presence").send().await.expect(200);
        let mut users: Vec<String> = reply["members"].as_array().expect("members is a list").iter().map(user).collect();
        users.sort();
        assert_eq!((&reply["count"], users), (&json!(4), expected.clone()));
    }
    let gone = others.pop().expect("there are three");
    let user_gone = gone.session();
    drop(gone);
    member_event(&mut watcher, "member_left", &user_gone).await;
    let reply = http::get(target.address(0), "/v1/rooms/a").send().await.expect(200);
    assert_eq!((&reply["sessions"], &reply["users"]), (&json!(3), &json!(3)));
}

fn user(member: &Value) -> String {
    member["user"].as_str().expect("a member has a user").to_owned()
}

/// Waits for the event about this session. Events about others, and about the watcher itself, may come before it.
async fn member_event(watcher: &mut Client, kind: &str, session: &str) {
    let mut others = Vec::new();
    loop {
        let frame = watcher.take(kind).await.json;
        if frame["member"]["user"] == session {
            return;
        }
        assert!(!others.contains(&frame), "sent twice: {frame}");
        others.push(frame);
    }
}

/// A kick and a disconnect at any node reach a session at any other.
pub(crate) async fn kicks_reach_every_node(target: &Target) {
    for index in 0..3 {
        let mut client = Client::connect(target.address(index)).await;
        client.join("a").await;
        let kick = format!("/v1/rooms/a/members/{}", client.session());
        assert_eq!(http::delete(target.address(index + 1), &kick).send().await.status, 204);
        assert_eq!(client.take("left").await.json["reason"], "kicked");
        let disconnect = format!("/v1/users/{}", client.session());
        assert_eq!(http::delete(target.address(index + 2), &disconnect).send().await.status, 204);
        assert_eq!(client.ended().await.code, Some(4403));
    }
}

/// The acceptance run: `member_count` members in 30 rooms get `total` publications from all nodes, and the history checker
/// finds no fault.
pub(crate) async fn nothing_is_lost_under_load(target: &Target, member_count: usize, total: u64) {
    let rooms = rooms(30);
    let timing = Timing::new(total);
    let members = Crowd { timing: Some(&timing), ..Crowd::of(target, &rooms) }.members(member_count).await;
    let load = Load { target: target.clone(), publishers: 6, rooms, total, window: 4, pace: Duration::ZERO };
    let published = load.start_timed(&timing).finish().await;
    settle(&members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let verdict = judge(target, &published, &reports);
    let mut latencies: Vec<Duration> =
        reports.iter_mut().flat_map(|report| std::mem::take(&mut report.latencies)).collect();
    latencies.sort_unstable();
    if let (Some(p50), Some(p99)) = (percentile(&latencies, 50), percentile(&latencies, 99)) {
        let deliveries = latencies.len();
        let target = target.name;
        print_line(&format!(
            "latency: publish to member on another node, {deliveries} deliveries, p50={p50:.1?} p99={p99:.1?} over {target}"
        ));
    }
    assert!(verdict.has_no_loss(), "{verdict}");
    assert_eq!(verdict.published as u64, total);
    assert_eq!(verdict.delivered as u64, total * (member_count as u64 / 30));
    assert!(!latencies.is_empty(), "members and publishers were on different nodes");
    assert!(reports.iter().all(|report| report.nodes.len() == 1), "nobody had to reconnect");
}
