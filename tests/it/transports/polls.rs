//! Answers to polls: messages, cursors, limits. A poll is stateless: its cursor acknowledges what the client has had.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fanfare_tests::http::Reply;
use fanfare_tests::transport::http_connection::HttpConnection;
use fanfare_tests::transport::poll::{self, PollResponse, served};
use fanfare_tests::wait::{eventually, within};
use fanfare_tests::{Cluster, RoomRequest, Transport, http};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::publish;
use crate::fixtures::{metric, one_node, one_node_with, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// A poll that waits at the node, which has no other one.
async fn parked(cluster: &Cluster, request: &RoomRequest) -> JoinHandle<Reply> {
    let poll = tokio::spawn(poll::get(cluster.address(0), request).send());
    waits(cluster, 1).await;
    poll
}

async fn waits(cluster: &Cluster, count: usize) {
    eventually("the polls wait", async || {
        (metric(cluster.nodes[0].admin, "fanfare_polls_waiting").await - count as f64).abs() < 0.1
    })
    .await;
}

async fn answer(poll: JoinHandle<Reply>) -> PollResponse {
    served(&poll.await.expect("a poll"))
}

fn since(room: &str, at: &str) -> RoomRequest {
    RoomRequest::of(&[room]).since(at)
}

// Polls without a cursor.

#[tokio::test]
async fn a_poll_without_a_cursor_gets_the_head_at_once() {
    let cluster = one_node().await;
    let reply = poll::get(cluster.address(0), &RoomRequest::of(&["a"])).send().await;
    assert_eq!(reply.header("cache-control"), "no-store", "{reply:?}");
    assert_eq!(reply.header("etag"), "", "{reply:?}");
    let json = reply.json();
    let names: Vec<&String> = json.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["cursor", "messages", "more", "next_ms", "session"], "{json}");
    let fresh = served(&reply);
    assert_eq!((split(&json["cursor"]).1, fresh.messages().count(), fresh.more, fresh.next_ms), (0, 0, false, 0));
    assert!(fresh.session.len() >= 22, "the secret has 128 bits: {}", fresh.session);
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let head = served(&poll::get(cluster.address(0), &RoomRequest::of(&["a"])).send().await);
    assert_eq!((head.cursor(), head.messages().count()), (at.as_str(), 0));
    assert_ne!(head.session, fresh.session);
    assert_eq!(poll::once(cluster.address(0), &since("a", fresh.cursor())).await.data(), [json!(1)]);
}

#[tokio::test]
async fn a_poll_without_a_cursor_may_ask_for_the_last_n() {
    let cluster = one_node().await;
    for n in 1..=5 {
        publish(cluster.address(0), "a", &json!(n)).await;
    }
    let last = served(&poll::get(cluster.address(0), &RoomRequest::of(&["a"]).with("last=2")).send().await);
    assert_eq!((last.data(), split(&json!(last.cursor())).1), (vec![json!(4), json!(5)], 5));
    let more_than_there_is =
        served(&poll::get(cluster.address(0), &RoomRequest::of(&["a"]).with("last=50")).send().await);
    assert!(more_than_there_is.data().len() == 5 && more_than_there_is.gap.is_none());
    let with_a_cursor = poll::once(cluster.address(0), &since("a", last.cursor()).with("last=2")).await;
    assert_eq!(with_a_cursor.data(), [json!(null); 0], "a cursor takes precedence over `last`");
}

// Waiting.

#[tokio::test]
async fn the_next_message_answers_a_waiting_poll() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let waiting = parked(&cluster, &since("a", start.cursor())).await;
    let at = publish(cluster.address(0), "a", &json!("x")).await;
    let woken = answer(waiting).await;
    assert_eq!((woken.data(), woken.cursor(), woken.more, woken.next_ms), (vec![json!("x")], at.as_str(), false, 0));
    let message: Value = serde_json::from_str(woken.messages().next().expect("one")).expect("JSON");
    assert_eq!((&message["type"], &message["room"], &message["cursor"]), (&json!("message"), &json!("a"), &json!(at)));
    waits(&cluster, 0).await;
}

#[tokio::test]
async fn a_poll_that_waited_in_vain_gets_its_cursor_again() {
    let cluster = one_node().await;
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let whole = poll::once(cluster.address(0), &RoomRequest::of(&["a", "b"])).await.cursor().to_owned();
    let begun = Instant::now();
    let request = RoomRequest::of(&["a", "b"]).since(whole.as_str()).with("wait=1");
    let empty = served(&poll::get(cluster.address(0), &request).send().await);
    assert!(begun.elapsed() >= Duration::from_millis(800), "{:?}", begun.elapsed());
    assert_eq!((empty.messages().count(), empty.more, empty.gap.is_none()), (0, false, true));
    assert_eq!((empty.cursor(), whole.split('~').next()), (whole.as_str(), Some(at.as_str())));
}

/// A poll waits only when its client has the cursors of all rooms, so that no message is lost if the answer is.
#[tokio::test]
async fn a_poll_that_lacks_a_cursor_gets_it_at_once() {
    let cluster = one_node().await;
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let head = poll::once(cluster.address(0), &RoomRequest::of(&["b"])).await.cursor().to_owned();
    for (since, expected) in [(format!("{at}~"), format!("{at}~{head}")), (format!("~{head}"), format!("{at}~{head}"))]
    {
        let request = RoomRequest::of(&["a", "b"]).since(since.as_str());
        let filled = served(&poll::get(cluster.address(0), &request).send().await);
        assert_eq!((filled.cursor(), filled.messages().count()), (expected.as_str(), 0), "{since}");
    }
}

#[tokio::test]
async fn a_too_long_wait_is_shortened_and_not_refused() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let waiting = parked(&cluster, &since("a", start.cursor()).with("wait=100000")).await;
    publish(cluster.address(0), "a", &json!(1)).await;
    assert_eq!(answer(waiting).await.data(), [json!(1)]);
}

#[tokio::test]
async fn a_poll_ends_when_its_client_disconnects() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let mut wire = HttpConnection::connect(cluster.address(0)).await.expect("a connection");
    wire.get(&since("a", start.cursor()).path(Transport::LongPoll, Some(start.cursor())), &[]).await.expect("sent");
    waits(&cluster, 1).await;
    drop(wire);
    waits(&cluster, 0).await;
}

#[tokio::test]
async fn a_poll_of_several_rooms_gets_the_messages_of_each() {
    let cluster = one_node().await;
    let request = RoomRequest::of(&["b", "a"]);
    let start = poll::once(cluster.address(0), &request).await;
    let waiting = parked(&cluster, &request.clone().since(start.cursor())).await;
    let a = publish(cluster.address(0), "a", &json!("in a")).await;
    let woken = answer(waiting).await;
    let parts: Vec<&str> = woken.cursor().split('~').collect();
    assert_eq!((woken.data(), parts[1]), (vec![json!("in a")], a.as_str()));
    assert_eq!(parts[0], start.cursor().split('~').next().unwrap(), "the cursor of the other room is unchanged");
    let b = publish(cluster.address(0), "b", &json!("in b")).await;
    let next = poll::once(cluster.address(0), &request.since(woken.cursor())).await;
    assert_eq!((next.data(), next.cursor()), (vec![json!("in b")], format!("{b}~{a}").as_str()));
}

// Limits.

#[tokio::test]
async fn more_messages_than_the_limit_come_in_several_answers() {
    let cluster = one_node_with(KEEP_ALL).await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await.cursor().to_owned();
    publish_numbers(&cluster, "a", 0, 5).await;
    let (mut at, mut parts) = (start.clone(), Vec::new());
    loop {
        let part = poll::once(cluster.address(0), &since("a", &at).with("limit=2")).await;
        part.cursor().clone_into(&mut at);
        parts.push(part.data().len());
        if !part.more {
            break;
        }
    }
    assert_eq!((parts, split(&json!(at)).1), (vec![2, 2, 1], 5));
    let without = poll::once(cluster.address(0), &since("a", &start)).await;
    assert_eq!((without.data().len(), without.more), (5, false));
    let waits_not = served(&poll::get(cluster.address(0), &since("a", &start).with("limit=2&wait=25")).send().await);
    assert_eq!(
        (waits_not.data().len(), waits_not.more),
        (2, true),
        "a poll with messages at once does not wait for more"
    );
}

#[tokio::test]
async fn an_answer_has_100_messages_by_default_and_1000_at_most() {
    let (alone, two) = tokio::join!(one_node_with(KEEP_ALL), Cluster::over_redis(2).config(KEEP_ALL).start());
    for cluster in [alone, two] {
        let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await.cursor().to_owned();
        publish_numbers(&cluster, "a", 0, 1_200).await;
        for (query, expected) in [("", 100), ("limit=300", 300), ("limit=1000", 1_000), ("limit=100000", 1_000)] {
            // The last node does not follow the room.
            let address = cluster.nodes[cluster.nodes.len() - 1].listen;
            let answer = poll::once(address, &since("a", &start).with(query)).await;
            let numbers: Vec<Value> = (0..expected).map(|n| json!(n)).collect();
            assert_eq!((answer.data(), answer.more), (numbers, true), "{query}");
            assert_eq!(split(&json!(answer.cursor())).1, expected, "{query}");
        }
    }
}

#[tokio::test]
async fn rooms_share_the_limit_and_each_continues_where_it_stopped() {
    let cluster = one_node_with(KEEP_ALL).await;
    let rooms = ["a", "b", "quiet", "c"];
    let mut at = poll::once(cluster.address(0), &RoomRequest::of(&rooms)).await.cursor().to_owned();
    for (room, count) in [("a", 40), ("b", 3), ("c", 25)] {
        publish_numbers(&cluster, room, 0, count).await;
    }
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    loop {
        let part = poll::once(cluster.address(0), &RoomRequest::of(&rooms).since(at.as_str()).with("limit=7")).await;
        assert!(part.messages().count() <= 7);
        for text in part.messages() {
            let message: Value = serde_json::from_str(text).expect("JSON");
            let room = message["room"].as_str().expect("a room").to_owned();
            seen.entry(room).or_default().push(message["data"].as_u64().expect("a number"));
        }
        part.cursor().clone_into(&mut at);
        if !part.more {
            break;
        }
    }
    let expected = [("a", 40), ("b", 3), ("c", 25)].map(|(room, count)| (room.to_owned(), (0..count).collect()));
    assert_eq!(seen, expected.into_iter().collect());
}

#[tokio::test]
async fn as_many_rooms_as_a_session_may_join_can_be_polled() {
    let cluster = one_node().await;
    let rooms: Vec<String> = (0..128).map(|n| format!("a-room-with-a-name-of-some-length:{n}")).collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    let start = poll::once(cluster.address(0), &RoomRequest::of(&rooms)).await;
    assert_eq!(start.cursor().split('~').count(), 128);
    let waiting = parked(&cluster, &RoomRequest::of(&rooms).since(start.cursor())).await;
    publish(cluster.address(0), rooms[127], &json!("last")).await;
    assert_eq!(answer(waiting).await.data(), [json!("last")]);
}

#[tokio::test]
async fn an_answer_is_256_kib_at_most() {
    let cluster = one_node_with(KEEP_ALL).await;
    let request = RoomRequest::of(&["a", "b"]);
    let mut at = poll::once(cluster.address(0), &request).await.cursor().to_owned();
    for n in 0..12 {
        // The largest message that is allowed.
        publish(cluster.address(0), if n % 3 == 0 { "b" } else { "a" }, &json!("x".repeat(65_534))).await;
    }
    let (mut count, mut answers) = (0, 0);
    loop {
        let reply =
            poll::get(cluster.address(0), &request.clone().since(at.as_str()).with("wait=0&limit=1000")).send().await;
        assert!(reply.text.len() <= 256 << 10, "{}", reply.text.len());
        let part = served(&reply);
        assert!(!part.data().is_empty(), "each answer has messages");
        part.cursor().clone_into(&mut at);
        (count, answers) = (count + part.data().len(), answers + 1);
        if !part.more {
            break;
        }
    }
    assert_eq!(count, 12);
    assert!(answers >= 4, "{answers}");
}

/// The names of the rooms count as well.
#[tokio::test]
async fn an_answer_to_a_long_list_of_long_names_is_256_kib_at_most() {
    let cluster = one_node_with(KEEP_ALL).await;
    let address = cluster.address(0);
    let names: Vec<String> = (0..128).map(|n| format!("{n:03}-{}", "x".repeat(251))).collect();
    let mut cursors: BTreeMap<String, Option<String>> = names.iter().map(|name| (name.clone(), None)).collect();
    let mut request = async || {
        let body = json!({"rooms": cursors, "wait": 0, "limit": 1000});
        let reply = poll::post(address, &body).send().await;
        assert!(reply.text.len() <= 256 << 10, "{}", reply.text.len());
        let answer = served(&reply);
        let ends = answer.cursors.clone().expect("a cursor for each room");
        cursors.extend(ends.into_iter().map(|(name, cursor)| (name, Some(cursor))));
        answer
    };
    request().await;
    for name in &names[..80] {
        publish(address, name, &json!("x".repeat(4_000))).await;
    }
    let mut count = 0;
    loop {
        let answer = request().await;
        count += answer.messages().count();
        if !answer.more {
            break;
        }
    }
    assert_eq!(count, 80);
}

#[tokio::test]
async fn messages_published_together_are_answered_together() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let waiting = parked(&cluster, &since("a", start.cursor())).await;
    publish_numbers(&cluster, "a", 0, 5).await;
    let woken = answer(waiting).await;
    assert_eq!(woken.data(), (0..5).map(|n| json!(n)).collect::<Vec<_>>());
}

// Statelessness.

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let path = since("a", start.cursor()).path(Transport::LongPoll, Some(start.cursor()));
    let mut wire = HttpConnection::connect(cluster.address(0)).await.expect("a connection");
    wire.get(&path, &[]).await.expect("sent");
    waits(&cluster, 1).await;
    publish(cluster.address(0), "a", &json!(1)).await;
    assert_eq!(within("an answer", wire.head()).await.expect("a head").status, 200);
    wire.reset();
    for _ in 0..2 {
        assert_eq!(poll::once(cluster.address(0), &since("a", start.cursor())).await.data(), [json!(1)]);
    }
}

#[tokio::test]
async fn two_polls_at_once_are_both_served() {
    let cluster = one_node().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let request = since("a", start.cursor()).with(&format!("session={}", start.session));
    let polls: Vec<_> = (0..2).map(|_| tokio::spawn(poll::get(cluster.address(0), &request).send())).collect();
    waits(&cluster, 2).await;
    publish(cluster.address(0), "a", &json!(1)).await;
    for poll in polls {
        assert_eq!(answer(poll).await.data(), [json!(1)]);
    }
}

#[tokio::test]
async fn a_message_from_another_node_wakes_a_poll_and_any_node_continues() {
    let cluster = Cluster::over_redis(2).start().await;
    let start = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await;
    let (mut at, session) = (start.cursor().to_owned(), start.session);
    for n in 0..20 {
        let request = since("a", &at).with(&format!("session={session}"));
        let node = n % 2;
        let waiting = tokio::spawn(poll::get(cluster.address(node), &request).send());
        eventually("the poll waits", async || metric(cluster.nodes[node].admin, "fanfare_polls_waiting").await > 0.5)
            .await;
        publish(cluster.address(n / 2), "a", &json!(n)).await;
        let woken = answer(waiting).await;
        assert_eq!(woken.data(), [json!(n)]);
        woken.cursor().clone_into(&mut at);
    }
}

/// A session is random bits that no node keeps. The node can check its form only: another node may have given it.
#[tokio::test]
async fn a_malformed_session_is_a_bad_request() {
    let cluster = one_node().await;
    let given = poll::once(cluster.address(0), &RoomRequest::of(&["a"])).await.session;
    for session in ["x", "", &given[1..], &format!("{given}A"), &"x".repeat(5_000), "%00", "%C3%A9"] {
        let request = RoomRequest::of(&["a"]).with(&format!("wait=0&session={session}"));
        assert_eq!(poll::get(cluster.address(0), &request).send().await.problem(400), "bad_request", "{session}");
        let mut body = poll::body(&[("a", None)], 0);
        body["session"] = json!(session);
        assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "bad_request", "{session}");
    }
    let request = RoomRequest::of(&["a"]).with(&format!("session={given}"));
    assert_eq!(poll::once(cluster.address(0), &request).await.session, given);
}

// Rooms in the body.

#[tokio::test]
async fn a_long_room_list_can_be_posted() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    publish(address, "a", &json!("old")).await;
    let start = poll::once(address, &RoomRequest::of(&["a"])).await.cursor().to_owned();
    let reply = poll::post(address, &poll::body(&[("a", None), ("x,y", None)], 25)).send().await;
    assert_eq!(reply.header("cache-control"), "no-store", "{reply:?}");
    let head = served(&reply).cursors.expect("a cursor for each room");
    assert_eq!((head["a"].as_str(), split(&json!(head["x,y"])).1), (start.as_str(), 0), "null means the head");
    let body = poll::body(&[("a", Some(&head["a"])), ("x,y", Some(&head["x,y"]))], 25);
    let waiting = tokio::spawn(poll::post(address, &body).send());
    waits(&cluster, 1).await;
    let at = publish(address, "x,y", &json!(1)).await;
    let woken = answer(waiting).await;
    assert_eq!(woken.data(), [json!(1)]);
    let expected: BTreeMap<String, String> =
        [("a".to_owned(), start.clone()), ("x,y".to_owned(), at)].into_iter().collect();
    assert_eq!(woken.cursors, Some(expected));
    let last =
        served(&poll::post(address, &json!({"rooms": {"a": null}, "last": 1, "wait": 0, "limit": 5})).send().await);
    assert_eq!((last.data(), last.cursors.map(|cursors| cursors["a"].clone())), (vec![json!("old")], Some(start)));
    let gone = served(&poll::post(address, &json!({"rooms": {"a": "foreign-epoch.3"}, "wait": 0})).send().await);
    assert_eq!(gone.gap.as_ref().map(|gap| gap["a"].missed), Some(None));
    assert_eq!(gone.data(), [json!("old")]);
}

#[tokio::test]
async fn a_malformed_body_is_a_bad_request() {
    let cluster = one_node().await;
    for body in [
        json!([]),
        json!({}),
        json!({"rooms": ["a"]}),
        json!({"rooms": {}}),
        json!({"rooms": {"a": 1}}),
        json!({"rooms": {"a": null}, "wait": "x"}),
        json!({"rooms": {"a": null}, "limit": -1}),
    ] {
        assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "bad_request", "{body}");
    }
    let call = http::call("POST", cluster.address(0), "/v1/poll").header("content-type", "application/json");
    assert_eq!(call.body("{\"rooms\":").send().await.problem(400), "bad_request");
}
