//! Presence of clients that poll: each poll renews a lease, at whichever node it arrives, and members see one join and one
//! leave.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::poll;
use fanfare_tests::wait::{eventually, eventually_within, patient, within_time};
use fanfare_tests::{Client, Cluster, RoomRequest, http};
use serde_json::{Value, json};

use super::publish;
use super::traces::followed;
use crate::fixtures::UnfinishedPublish;

/// The most time between the end of a lease and `member_left`: for sweeps, and for a busy machine.
const SLACK: Duration = Duration::from_secs(8);

/// A member that gets presence events.
async fn watcher(cluster: &Cluster, node: usize, room: &str) -> Client {
    let mut watcher = Client::connect(cluster.address(node)).await;
    watcher.join_with(json!({"room": room, "presence": true})).await;
    watcher
}

/// The next presence event about another member.
async fn presence_event(watcher: &mut Client, limit: Duration) -> Value {
    within_time(patient(limit), "a presence event", async {
        loop {
            match watcher.try_next().await {
                Ok(frame) if frame.json["member"]["user"] == watcher.session() => {}
                Ok(frame) if frame.kind().starts_with("member_") => return frame.json,
                Ok(_) => {}
                Err(ended) => panic!("{ended:?}"),
            }
        }
    })
    .await
}

/// The presence events so far, except those about the watcher itself.
async fn presence_events_so_far(watcher: &mut Client) -> Vec<Value> {
    let session = watcher.session();
    let frames = watcher.so_far().await.into_iter().map(|frame| frame.json);
    frames.filter(|frame| frame["member"].is_object() && frame["member"]["user"] != session).collect()
}

/// Polls with a wait of 55 s, and so a lease of 65 s, and is answered at once, with a message. Returns the request of the next
/// such poll, and the member.
async fn long_poller(cluster: &Cluster, node: usize, watcher: &mut Client, room: &str) -> (RoomRequest, Value) {
    let first = poll::once(cluster.address(node), &RoomRequest::of(&[room])).await;
    publish(cluster.address(node), room, &json!("news")).await;
    let request = RoomRequest::of(&[room]).with(&format!("wait=55&session={}", first.session));
    let answer = poll::served(&poll::get(cluster.address(node), &request.clone().since(first.cursor())).send().await);
    let joined = presence_event(watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    (request.since(answer.cursor()), joined["member"].clone())
}

async fn listed(cluster: &Cluster, node: usize, room: &str, user: &Value) -> bool {
    let reply = http::get(cluster.address(node), &format!("/v1/rooms/{room}/presence")).send().await.expect(200);
    reply["members"].as_array().is_some_and(|members| members.iter().any(|member| member["user"] == *user))
}

/// Long polls at both nodes in turn, by path and by body, are one member, which leaves when they stop.
async fn long_polls_hold_one_lease(cluster: &Cluster) {
    let room = "long";
    let mut watchers = [watcher(cluster, 0, room).await, watcher(cluster, 1, room).await];
    let first = poll::once(cluster.address(0), &RoomRequest::of(&[room])).await;
    let sessions: Vec<Value> = watchers.iter().map(|watcher| json!(watcher.session())).collect();
    for watcher in &mut watchers {
        let users = presence_events_so_far(watcher).await.into_iter().map(|frame| frame["member"]["user"].clone());
        assert!(users.into_iter().all(|user| sessions.contains(&user)), "a poll without a session is no member");
    }
    let (mut at, session) = (first.cursor().to_owned(), first.session);
    let mut user = json!(null);
    let mut last_sent = Instant::now();
    for n in 0..6 {
        last_sent = Instant::now();
        let reply = if n % 3 == 2 {
            let mut body = poll::body(&[(room, Some(&at))], 1);
            body["session"] = json!(session);
            poll::post(cluster.address(n), &body).send().await
        } else {
            let request = RoomRequest::of(&[room]).since(at.as_str()).with(&format!("wait=1&session={session}"));
            poll::get(cluster.address(n), &request).send().await
        };
        let answer = poll::served(&reply);
        assert_eq!(answer.session, session, "it is one session all along");
        at = answer.cursor.or_else(|| answer.cursors.map(|cursors| cursors[room].clone())).expect("a cursor");
        if n == 0 {
            for watcher in &mut watchers {
                // The first watcher also gets the event about the other watcher, at any time.
                user = loop {
                    let joined = presence_event(watcher, Duration::from_secs(10)).await;
                    assert_eq!(joined["type"], "member_joined", "{joined}");
                    if !sessions.contains(&joined["member"]["user"]) {
                        break joined["member"]["user"].clone();
                    }
                };
            }
        }
        assert!(listed(cluster, n + 1, room, &user).await, "poll {n}");
    }
    assert!(
        !user.to_string().contains(&session) && !session.contains(user.as_str().expect("a user")),
        "the user is public, the session is secret: {user}"
    );
    for watcher in &mut watchers {
        let left = presence_event(watcher, Duration::from_secs(11) + SLACK).await;
        assert_eq!((&left["type"], &left["member"]["user"]), (&json!("member_left"), &user), "one join and one leave");
        assert!(
            last_sent.elapsed() >= Duration::from_secs(10),
            "the wait, and a lease of 10 s: {:?}",
            last_sent.elapsed()
        );
    }
    assert!(!listed(cluster, 0, room, &user).await);
    // After a long silence the suggested time between polls has grown.
    let quiet = poll::once(cluster.address(0), &RoomRequest::of(&[room])).await.next_ms;
    assert!((800..=36_000).contains(&quiet), "{quiet}");
}

/// Short polls, answered with 200 or 304, keep their client present for at least 30 s after the last one.
async fn short_polls_hold_a_longer_one(cluster: &Cluster, status: u16) {
    let room = format!("short:{status}");
    let mut watcher = watcher(cluster, 1, &room).await;
    let saying = Instant::now();
    let at = publish(cluster.address(0), &room, &json!(1)).await;
    let session = poll::once(cluster.address(0), &RoomRequest::of(&[&room])).await.session;
    let request = RoomRequest::of(&[&room]).since(at.as_str());
    // A first, short lease: only the short polls make it longer.
    let waits = poll::get(cluster.address(0), &request.clone().with(&format!("wait=1&session={session}")));
    assert_eq!(poll::served(&waits.send().await).cursor(), at);
    let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    let mut last_sent = Instant::now();
    for node in 0..3 {
        last_sent = Instant::now();
        let mut call = poll::get(cluster.address(node), &request.clone().with(&format!("wait=0&session={session}")));
        if status == 304 {
            call = call.header("if-none-match", &format!("\"{at}\""));
        }
        assert_eq!(call.send().await.status, status);
    }
    let left = presence_event(&mut watcher, Duration::from_secs(30) + SLACK).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &joined["member"]));
    assert!(last_sent.elapsed() >= Duration::from_secs(29), "{status}: {:?}", last_sent.elapsed());
    // A shard counts from when it began to follow the room, which was at one of the polls.
    let least = last_sent.elapsed();
    let quiet = poll::once(cluster.address(0), &RoomRequest::of(&[&room])).await.next_ms as f64;
    let [least, most] = [least, saying.elapsed()].map(|silence| silence.as_millis() as f64 / 2.0);
    assert!((least * 0.79..most * 1.21).contains(&quiet), "half of the silence, between {least} and {most}: {quiet}");
}

/// The lease of a poller and the session of a stream are two members, each with its own leave.
async fn a_poller_that_goes_to_a_stream_leaves_once(cluster: &Cluster) {
    let room = "change";
    let mut watcher = watcher(cluster, 0, room).await;
    let first = poll::once(cluster.address(1), &RoomRequest::of(&[room])).await;
    let request = RoomRequest::of(&[room]).since(first.cursor()).with(&format!("wait=1&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(1), &request).send().await);
    assert_eq!(there.session, first.session);
    let poller = presence_event(&mut watcher, Duration::from_secs(10)).await;
    let request = RoomRequest::of(&[room]).since(first.cursor());
    let stream =
        fanfare_tests::TransportClient::join(cluster.address(1), fanfare_tests::Transport::Sse, &request).await;
    let streaming = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&streaming["type"], &streaming["member"]["user"]), (&json!("member_joined"), &json!(stream.session())));
    let left = presence_event(&mut watcher, Duration::from_secs(11) + SLACK).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &poller["member"]));
    drop(stream);
    let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &streaming["member"]));
    assert_eq!(presence_events_so_far(&mut watcher).await, [json!(null); 0]);
}

/// A polled room stays followed for as long as a poller may take to come back, and no longer.
async fn an_unpolled_room_is_unfollowed(redis: &Redis, address: SocketAddr) {
    poll::once(address, &RoomRequest::of(&["let-go"])).await;
    assert_eq!(followed(redis, &["let-go"]).await, 1);
    eventually_within(patient(Duration::from_secs(60)), "the room is no longer followed", async || {
        followed(redis, &["let-go"]).await == 0
    })
    .await;
}

/// One test for all, since they wait most of the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_with_a_session_is_one_member_whichever_nodes_it_polls() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let cluster = Cluster::over_addresses(2, vec![redis.url()]).start().await;
    tokio::join!(
        long_polls_hold_one_lease(&cluster),
        short_polls_hold_a_longer_one(&cluster, 200),
        short_polls_hold_a_longer_one(&cluster, 304),
        a_poller_that_goes_to_a_stream_leaves_once(&cluster),
        an_unpolled_room_is_unfollowed(&redis, cluster.address(0)),
    );
}

/// After the death of a node its sessions are removed, but not those that polls have renewed at another node.
#[tokio::test]
async fn a_poller_whose_node_dies_stays_the_same_member() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 1, "a").await;
    let mut dying = Client::connect(cluster.address(0)).await;
    dying.join("a").await;
    presence_event(&mut watcher, Duration::from_secs(10)).await;
    let first = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let request = RoomRequest::of(&["a"]).since(first.cursor()).with(&format!("wait=1&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(0), &request).send().await);
    assert_eq!(there.session, first.session);
    let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    cluster.nodes[0].kill();
    let begun = Instant::now();
    let mut left = Vec::new();
    // A node counts as dead after 10 s without a heartbeat.
    while left.is_empty() && begun.elapsed() < patient(Duration::from_secs(20)) {
        let answer = poll::served(&poll::get(cluster.address(1), &request).send().await);
        assert_eq!(answer.session, first.session);
        left.extend(presence_events_so_far(&mut watcher).await);
    }
    let gone: Vec<&Value> = left.iter().map(|frame| &frame["member"]["user"]).collect();
    assert_eq!(gone, [&json!(dying.session())], "the dead node's other session, and no one else");
    assert!(listed(&cluster, 1, "a", &joined["member"]["user"]).await);
}

#[tokio::test]
async fn a_kicked_poller_loses_its_membership() {
    let cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 0, "a").await;
    let first = poll::once(cluster.address(1), &RoomRequest::of(&["a"])).await;
    let request = RoomRequest::of(&["a"]).since(first.cursor()).with(&format!("wait=0&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(1), &request).send().await);
    assert_eq!(there.session, first.session);
    let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
    let user = joined["member"]["user"].as_str().expect("a user").to_owned();
    let kick = http::delete(cluster.address(0), &format!("/v1/rooms/a/members/{user}")).send().await;
    assert_eq!(kick.status, 204);
    let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]["user"]), (&json!("member_left"), &json!(user)));
    eventually("the member is no longer listed", async || !listed(&cluster, 1, "a", &json!(user)).await).await;
    for node in 0..2 {
        let reply = poll::get(cluster.address(node), &request).send().await;
        assert_eq!(reply.problem(403), "forbidden", "node {node} does not let it in again");
    }
}

/// A kick ended the leases that some node had renewed and still remembered: a member of another one stayed listed, although its
/// polls were refused.
#[tokio::test]
async fn a_kick_ends_a_lease_whose_node_has_gone() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 0, "a").await;
    let (_, member) = long_poller(&cluster, 1, &mut watcher, "a").await;
    cluster.nodes[1].terminate();
    cluster.nodes[1].exit(patient(Duration::from_secs(20))).await;
    let user = member["user"].as_str().expect("a user");
    let kick = http::delete(cluster.address(0), &format!("/v1/rooms/a/members/{user}")).send().await;
    assert_eq!(kick.status, 204);
    assert!(!listed(&cluster, 0, "a", &json!(user)).await, "the kick is done when it is answered");
    let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &member));
}

/// The lease was in the memory of the node that was polled last, and a drain announced that its pollers left: to the others
/// a poller that came back a moment later left and joined with each deploy.
#[tokio::test]
async fn a_poller_whose_node_drains_stays_the_same_member() {
    let mut cluster = Cluster::over_redis(2).drain(1).start().await;
    let mut watcher = watcher(&cluster, 1, "a").await;
    let first = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let request = RoomRequest::of(&["a"]).since(first.cursor()).with(&format!("wait=0&session={}", first.session));
    assert_eq!(poll::get(cluster.address(0), &request).send().await.status, 200);
    let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    cluster.nodes[0].terminate();
    cluster.nodes[0].exit(patient(Duration::from_secs(20))).await;
    assert_eq!(poll::get(cluster.address(1), &request).send().await.status, 200);
    assert!(listed(&cluster, 1, "a", &joined["member"]["user"]).await);
    assert_eq!(presence_events_so_far(&mut watcher).await, [json!(null); 0], "neither left nor joined again");
}

/// A client that stops polling used to be listed until its lease was over.
#[tokio::test]
async fn a_poller_gives_its_lease_back() {
    let cluster = Cluster::over_redis(2).start().await;
    for (room, by_body) in [("a", false), ("b", true)] {
        let mut watcher = watcher(&cluster, 0, room).await;
        let first = poll::once(cluster.address(0), &RoomRequest::of(&[room])).await;
        let request = RoomRequest::of(&[room]).since(first.cursor());
        let call = poll::get(cluster.address(0), &request.clone().with(&format!("wait=0&session={}", first.session)));
        assert_eq!(call.send().await.status, 200);
        let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
        assert_eq!(joined["type"], "member_joined", "{joined}");
        let publish = http::post(cluster.address(0), &format!("/v1/rooms/{room}"), &json!("last")).send().await;
        assert_eq!(publish.status, 200);
        let reply = if by_body {
            let mut body = poll::body(&[(room, Some(first.cursor()))], 25);
            body["session"] = json!(first.session);
            body["leave"] = json!(true);
            poll::post(cluster.address(1), &body).send().await
        } else {
            let leave = format!("leave=1&session={}", first.session);
            poll::get(cluster.address(1), &request.with(&leave)).send().await
        };
        let answer = poll::served(&reply);
        assert_eq!(answer.messages().count(), 1, "it is a poll that does not wait");
        let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
        assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &joined["member"]));
    }
}

/// A node that had renewed a lease within the last second took it for still held, and told the backplane nothing of the next
/// poll: one that waited was absent for its whole wait, a short one until the next.
#[tokio::test]
async fn a_poller_that_gave_its_lease_back_elsewhere_is_a_member_again() {
    let cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 1, "a").await;
    let (request, member) = long_poller(&cluster, 0, &mut watcher, "a").await;
    let session = request.query.rsplit_once('=').expect("it ends with the session").1.to_owned();
    let short = request.clone().with(&format!("wait=0&session={session}"));
    let leave = request.clone().with(&format!("leave=1&session={session}"));
    let mut waiting = None;
    for is_short in [false, true] {
        assert_eq!(poll::get(cluster.address(1), &leave).send().await.status, 200);
        let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
        assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &member));
        if is_short {
            assert_eq!(poll::get(cluster.address(0), &short).send().await.status, 200);
        } else {
            waiting = Some(tokio::spawn(poll::get(cluster.address(0), &request).send()));
        }
        let joined = presence_event(&mut watcher, Duration::from_secs(10)).await;
        assert_eq!((&joined["type"], &joined["member"]), (&json!("member_joined"), &member), "short: {is_short}");
    }
    assert!(waiting.is_some_and(|poll| !poll.is_finished()), "it was a member while it waited");
}

/// A draining node took a client that left without a cursor for a new one, and refused it.
#[tokio::test]
async fn a_poller_gives_its_lease_back_at_a_draining_node() {
    let cluster = Cluster::over_redis(2).drain(30).start().await;
    let mut watcher = watcher(&cluster, 1, "a").await;
    let (request, member) = long_poller(&cluster, 0, &mut watcher, "a").await;
    // The drain lasts until this publish is finished.
    let _unfinished = UnfinishedPublish::begin(cluster.address(0)).await;
    cluster.nodes[0].terminate();
    eventually("the node drains", async || http::get(cluster.nodes[0].admin, "/readyz").send().await.status != 200)
        .await;
    let leave = RoomRequest::of(&["a"]).with(&format!("leave=1&{}", request.query));
    assert_eq!(poll::get(cluster.address(0), &leave).send().await.status, 200);
    let left = presence_event(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &member));
}
