//! Who polls can be present: a lease that polls renew, wherever they land, announced once and ended once.

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

/// Between the end of a lease and `member_left`: sweeps, and a machine that is busy.
const SLACK: Duration = Duration::from_secs(8);

/// A member that is told who comes and goes.
async fn watcher(cluster: &Cluster, node: usize, room: &str) -> Client {
    let mut watcher = Client::connect(cluster.address(node)).await;
    watcher.join_with(json!({"room": room, "presence": true})).await;
    watcher
}

/// The next event about somebody else.
async fn told(watcher: &mut Client, limit: Duration) -> Value {
    within_time(patient(limit), "somebody comes or goes", async {
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

/// What was told by now, the watcher's own coming aside.
async fn told_so_far(watcher: &mut Client) -> Vec<Value> {
    let session = watcher.session();
    let frames = watcher.so_far().await.into_iter().map(|frame| frame.json);
    frames.filter(|frame| frame["member"].is_object() && frame["member"]["user"] != session).collect()
}

async fn listed(cluster: &Cluster, node: usize, room: &str, user: &Value) -> bool {
    let reply = http::get(cluster.address(node), &format!("/v1/rooms/{room}/presence")).send().await.expect(200);
    reply["members"].as_array().is_some_and(|members| members.iter().any(|member| member["user"] == *user))
}

/// Polls that wait, at both nodes in turn, by path and by body: one member, which leaves when they stop.
async fn long_polls_hold_one_lease(cluster: &Cluster) {
    let room = "long";
    let mut watchers = [watcher(cluster, 0, room).await, watcher(cluster, 1, room).await];
    let first = poll::once(cluster.address(0), &RoomRequest::of(&[room])).await;
    let sessions: Vec<Value> = watchers.iter().map(|watcher| json!(watcher.session())).collect();
    for watcher in &mut watchers {
        let told = told_so_far(watcher).await.into_iter().map(|frame| frame["member"]["user"].clone());
        assert!(told.into_iter().all(|user| sessions.contains(&user)), "who does not repeat the session is not there");
    }
    let (mut at, session) = (first.cursor().to_owned(), first.session);
    let mut user = json!(null);
    for n in 0..6 {
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
        at = answer.cursor.or_else(|| answer.cursors.map(|places| places[room].clone())).expect("a place");
        if n == 0 {
            for watcher in &mut watchers {
                // The first one is told of the other watcher as well, in its own time.
                user = loop {
                    let joined = told(watcher, Duration::from_secs(10)).await;
                    assert_eq!(joined["type"], "member_joined", "{joined}");
                    if !sessions.contains(&joined["member"]["user"]) {
                        break joined["member"]["user"].clone();
                    }
                };
            }
        }
        assert!(listed(cluster, n + 1, room, &user).await, "poll {n}");
    }
    let ended = Instant::now();
    assert!(
        !user.to_string().contains(&session) && !session.contains(user.as_str().expect("a user")),
        "one is public: {user}"
    );
    for watcher in &mut watchers {
        let left = told(watcher, Duration::from_secs(11) + SLACK).await;
        assert_eq!((&left["type"], &left["member"]["user"]), (&json!("member_left"), &user), "once in, once out");
        assert!(ended.elapsed() >= Duration::from_secs(8), "wait and 10 s: {:?}", ended.elapsed());
    }
    assert!(!listed(cluster, 0, room, &user).await);
    // A message long after: the advice has grown with the silence.
    let quiet = poll::once(cluster.address(0), &RoomRequest::of(&[room])).await.next_ms;
    assert!((800..=36_000).contains(&quiet), "{quiet}");
}

/// Short polls, answered 200 or 304: at least half a minute from the last one.
async fn short_polls_hold_a_longer_one(cluster: &Cluster, status: u16) {
    let room = format!("short:{status}");
    let mut watcher = watcher(cluster, 1, &room).await;
    let said = Instant::now();
    let at = publish(cluster.address(0), &room, &json!(1)).await;
    let session = poll::once(cluster.address(0), &RoomRequest::of(&[&room])).await.session;
    let request = RoomRequest::of(&[&room]).since(at.as_str());
    // The first lease is a short one: only what renews it makes it long.
    let waits = poll::get(cluster.address(0), &request.clone().with(&format!("wait=1&session={session}")));
    assert_eq!(poll::served(&waits.send().await).cursor(), at);
    let joined = told(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    for node in 0..3 {
        let mut call = poll::get(cluster.address(node), &request.clone().with(&format!("wait=0&session={session}")));
        if status == 304 {
            call = call.header("if-none-match", &format!("\"{at}\""));
        }
        assert_eq!(call.send().await.status, status);
    }
    let renewed = Instant::now();
    let left = told(&mut watcher, Duration::from_secs(30) + SLACK).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &joined["member"]));
    assert!(renewed.elapsed() >= Duration::from_secs(28), "{status}: {:?}", renewed.elapsed());
    let (quiet, silence) = (poll::once(cluster.address(0), &RoomRequest::of(&[&room])).await.next_ms, said.elapsed());
    let half = silence.as_millis() as f64 / 2.0;
    assert!((half * 0.75..half * 1.25).contains(&(quiet as f64)), "half of {silence:?}: {quiet}");
}

/// The room is watched over a poll's own transport change: the lease of a poller and the session of a stream are two.
async fn a_poller_that_goes_to_a_stream_leaves_once(cluster: &Cluster) {
    let room = "change";
    let mut watcher = watcher(cluster, 0, room).await;
    let first = poll::once(cluster.address(1), &RoomRequest::of(&[room])).await;
    let request = RoomRequest::of(&[room]).since(first.cursor()).with(&format!("wait=1&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(1), &request).send().await);
    assert_eq!(there.session, first.session);
    let poller = told(&mut watcher, Duration::from_secs(10)).await;
    let request = RoomRequest::of(&[room]).since(first.cursor());
    let stream =
        fanfare_tests::TransportClient::join(cluster.address(1), fanfare_tests::Transport::Sse, &request).await;
    let streaming = told(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&streaming["type"], &streaming["member"]["user"]), (&json!("member_joined"), &json!(stream.session())));
    let left = told(&mut watcher, Duration::from_secs(11) + SLACK).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &poller["member"]));
    drop(stream);
    let left = told(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]), (&json!("member_left"), &streaming["member"]));
    assert_eq!(told_so_far(&mut watcher).await, [json!(null); 0]);
}

/// A room is followed for as long as a poller may take to come back, and then let go.
async fn a_room_that_nobody_polls_any_more_is_let_go(redis: &Redis, address: SocketAddr) {
    poll::once(address, &RoomRequest::of(&["let-go"])).await;
    assert_eq!(followed(redis, &["let-go"]).await, 1);
    eventually_within(patient(Duration::from_secs(60)), "nobody follows it", async || {
        followed(redis, &["let-go"]).await == 0
    })
    .await;
}

/// One test, since its parts wait most of the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_that_repeats_its_session_is_present_once_wherever_its_polls_land() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let cluster = Cluster::over_addresses(2, vec![redis.url()]).start().await;
    tokio::join!(
        long_polls_hold_one_lease(&cluster),
        short_polls_hold_a_longer_one(&cluster, 200),
        short_polls_hold_a_longer_one(&cluster, 304),
        a_poller_that_goes_to_a_stream_leaves_once(&cluster),
        a_room_that_nobody_polls_any_more_is_let_go(&redis, cluster.address(0)),
    );
}

/// The sweep after a node's death takes its sessions away and leaves those that polls have renewed elsewhere.
#[tokio::test]
async fn a_poller_whose_node_dies_stays_the_same_member() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 1, "a").await;
    let mut doomed = Client::connect(cluster.address(0)).await;
    doomed.join("a").await;
    told(&mut watcher, Duration::from_secs(10)).await;
    let first = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let request = RoomRequest::of(&["a"]).since(first.cursor()).with(&format!("wait=1&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(0), &request).send().await);
    assert_eq!(there.session, first.session);
    let joined = told(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!(joined["type"], "member_joined", "{joined}");
    cluster.nodes[0].kill();
    let begun = Instant::now();
    let mut left = Vec::new();
    // A node counts as dead after 10 s without a heartbeat.
    while left.is_empty() && begun.elapsed() < patient(Duration::from_secs(20)) {
        let answer = poll::served(&poll::get(cluster.address(1), &request).send().await);
        assert_eq!(answer.session, first.session);
        left.extend(told_so_far(&mut watcher).await);
    }
    let gone: Vec<&Value> = left.iter().map(|frame| &frame["member"]["user"]).collect();
    assert_eq!(gone, [&json!(doomed.session())], "the other session of the node, and nobody else");
    assert!(listed(&cluster, 1, "a", &joined["member"]["user"]).await);
}

#[tokio::test]
async fn a_kicked_poller_is_no_member_any_more() {
    let cluster = Cluster::over_redis(2).start().await;
    let mut watcher = watcher(&cluster, 0, "a").await;
    let first = poll::once(cluster.address(1), &RoomRequest::of(&["a"])).await;
    let request = RoomRequest::of(&["a"]).since(first.cursor()).with(&format!("wait=0&session={}", first.session));
    let there = poll::served(&poll::get(cluster.address(1), &request).send().await);
    assert_eq!(there.session, first.session);
    let joined = told(&mut watcher, Duration::from_secs(10)).await;
    let user = joined["member"]["user"].as_str().expect("a user").to_owned();
    let kick = http::delete(cluster.address(0), &format!("/v1/rooms/a/members/{user}")).send().await;
    assert_eq!(kick.status, 204);
    let left = told(&mut watcher, Duration::from_secs(10)).await;
    assert_eq!((&left["type"], &left["member"]["user"]), (&json!("member_left"), &json!(user)));
    eventually("nobody lists it", async || !listed(&cluster, 1, "a", &json!(user)).await).await;
    for node in 0..2 {
        let reply = poll::get(cluster.address(node), &request).send().await;
        assert_eq!(reply.problem(403), "forbidden", "it is not let in again at node {node}");
    }
}
