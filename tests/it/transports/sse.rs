//! What is special about server-sent events: their first bytes, their ids, their heartbeat.

use std::time::Duration;

use fanfare_tests::transport::ndjson::NdjsonStream;
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::wait::{patient, within, within_time};
use fanfare_tests::{Cluster, RoomRequest, Target, Transport, TransportClient};
use serde_json::{Value, json};

use super::{Entry, publish};
use crate::fixtures::{one_node, one_node_with, split};

/// A heartbeat comes every 15 s, unless WebSockets are pinged more often.
const BEAT: Duration = Duration::from_secs(18);

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The name and the data of the next event.
async fn event(events: &mut EventStream) -> (String, Value) {
    loop {
        if let Some(event) = events.block().await.event {
            return (event.kind, parse(&event.data));
        }
    }
}

/// The headers of both kinds of stream, and the events before the first message.
pub(super) async fn heads_and_first_bytes_come_at_once(entry: Entry) {
    let setup = entry.start(Cluster::embedded()).await;
    let address = setup.target.address(0);
    let at = publish(address, "a", &json!(1)).await;
    let mut events = EventStream::open(address, "/v1/rooms/a/sse", &[]).await.expect("a stream");
    let lines = NdjsonStream::open(address, "/v1/rooms/a/stream", &[]).await.expect("a stream");
    for (head, media) in [(&events.head, "text/event-stream"), (&lines.head, "application/x-ndjson")] {
        assert_eq!((head.header("content-type"), head.header("cache-control")), (media, "no-store, no-transform"));
        for absent in ["content-length", "content-encoding", "etag"] {
            assert_eq!(head.header(absent), "", "{media}");
        }
        if let Entry::Nodes = entry {
            let framing = (head.header("connection").to_ascii_lowercase(), head.header("transfer-encoding"));
            assert_eq!(framing, ("close".to_owned(), ""), "{media}: the body ends with the connection");
            // nginx removes it from the answer.
            assert_eq!(head.header("x-accel-buffering"), "no", "{media}");
        }
    }
    let retry = events.block().await;
    let retry_ms = retry.retry_ms.expect("the first block has the reconnect time");
    assert_eq!(String::from_utf8_lossy(&retry.raw), format!("retry:{retry_ms}\n\n"));
    assert!((100..=15_000).contains(&retry_ms), "{retry_ms}");
    let welcome = events.block().await;
    let event = welcome.event.expect("an event");
    assert_eq!((event.kind.as_str(), welcome.retry_ms), ("welcome", None));
    let welcome = parse(&event.data);
    let names: Vec<&str> = welcome.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["limits", "node", "ping_ms", "post", "route", "session", "type"], "{welcome}");
    assert_eq!((&welcome["ping_ms"], &welcome["type"]), (&json!(15_000), &json!("welcome")));
    let (post, session) = (welcome["post"].as_str().expect("a path"), welcome["session"].as_str().expect("an id"));
    let secret = post.strip_prefix("/v1/sessions/").expect("a path below the sessions");
    assert!(secret.len() >= 22 && !secret.contains(session), "a secret of 128 bits, without the public id: {post}");
    let joined = events.block().await;
    assert_eq!(joined.id, at, "a resume from here loses nothing");
    let event = joined.event.expect("an event");
    assert_eq!(
        (event.kind.as_str(), parse(&event.data)),
        ("joined", json!({"type": "joined", "room": "a", "cursor": at}))
    );
    the_first_lines(lines, &at).await;
    let next = publish(address, "a", &json!(2)).await;
    let message = events.block().await;
    let raw = String::from_utf8(message.raw).expect("UTF-8");
    let data = message.event.expect("an event").data;
    assert_eq!(raw, format!("data:{data}\nid:{next}\n\n"), "nothing but the data and the id");
    assert!(data.starts_with(r#"{"type":"message","room":"a""#), "{data}");
}

async fn the_first_lines(mut lines: NdjsonStream, at: &str) {
    for (kind, field) in [("welcome", json!(15_000)), ("joined", json!(at))] {
        let Ok(Some(line)) = within("a line", lines.next()).await else { panic!("the stream has ended") };
        let frame = parse(&line);
        assert_eq!(frame["type"], kind, "{line}");
        assert_eq!(frame[if kind == "welcome" { "ping_ms" } else { "cursor" }], field, "{line}");
    }
}

/// The only message is the client's own, which is not delivered to it. The heartbeat has the cursor after that message, for
/// the three rooms of the URL and not for a room that was joined later.
async fn heartbeats_carry_the_cursor(entry: Entry, limits: &str) {
    let rule = "[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n";
    let setup = entry.start(Cluster::embedded().config(&format!("{rule}{limits}"))).await;
    let address = setup.target.address(0);
    let rooms = ["a", "typing:1", "b"];
    let path = |transport| RoomRequest::of(&rooms).with("echo=0").path(transport, None);
    let mut events = EventStream::open(address, &path(Transport::Sse), &[]).await.expect("a stream");
    let mut lines = NdjsonStream::open(address, &path(Transport::Stream), &[]).await.expect("a stream");
    let post = loop {
        let (kind, data) = event(&mut events).await;
        if kind == "welcome" {
            break data["post"].as_str().expect("a secret path").to_owned();
        }
    };
    let commands = json!([
        {"type": "join", "room": "later", "echo": false},
        {"type": "publish", "room": "a", "data": "own"},
        {"type": "publish", "room": "later", "data": "own"}
    ]);
    let replies = fanfare_tests::http::post(address, &post, &commands).send().await.expect(200);
    let at = replies[1]["cursor"].as_str().expect("a cursor").to_owned();
    let beat = within_time(patient(BEAT), "a heartbeat", async {
        loop {
            let block = match events.next().await {
                Ok(Some(block)) => block,
                end => panic!("{end:?}"),
            };
            if block.event.is_none() && block.retry_ms.is_none() {
                return block;
            }
            let data = block.event.map(|event| event.data).unwrap_or_default();
            assert!(!data.contains("own"), "{data}");
        }
    })
    .await;
    let parts: Vec<&str> = beat.id.split('~').collect();
    assert_eq!((parts.len(), parts[0], parts[1]), (3, at.as_str(), "-"), "{beat:?}");
    assert_eq!(String::from_utf8_lossy(&beat.raw), format!("id:{}\n\n", beat.id));
    let cursor = within_time(patient(BEAT), "a heartbeat", async {
        loop {
            let Ok(Some(line)) = lines.next().await else { panic!("the stream has ended") };
            let frame = parse(&line);
            if frame["type"] == "ping" {
                return frame["cursor"].as_str().expect("a cursor").to_owned();
            }
        }
    })
    .await;
    assert_eq!(cursor, beat.id, "both streams have the same cursor");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_carry_the_cursor_directly_and_through_nginx() {
    let soon = "[limits]\nping_seconds = 2\n";
    tokio::join!(
        heartbeats_carry_the_cursor(super::DIRECT, ""),
        heartbeats_carry_the_cursor(super::NGINX_1_22, soon),
        heartbeats_carry_the_cursor(super::NGINX_NEW, soon),
    );
}

#[tokio::test]
async fn the_event_id_has_the_cursors_of_the_rooms_in_the_url() {
    let cluster = one_node_with("[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n").await;
    let address = cluster.address(0);
    let mut events = EventStream::open(address, "/v1/rooms/b,typing:1,a/sse", &[]).await.expect("a stream");
    let mut joined = 0;
    while joined < 3 {
        joined += usize::from(event(&mut events).await.0 == "joined");
    }
    let parts = |id: &str| id.split('~').map(str::to_owned).collect::<Vec<_>>();
    let start = parts(&events.id);
    assert_eq!((start.len(), start[1].as_str()), (3, "-"), "{start:?}");
    let a = publish(address, "a", &json!(1)).await;
    event(&mut events).await;
    assert_eq!(parts(&events.id), [&start[0], "-", &a]);
    publish(address, "typing:1", &json!(1)).await;
    let (_, message) = event(&mut events).await;
    assert!(message.get("cursor").is_none(), "{message}");
    assert_eq!(parts(&events.id), [&start[0], "-", &a], "a room without history has no cursor");
    let b = publish(address, "b", &json!(1)).await;
    event(&mut events).await;
    assert_eq!(parts(&events.id), [&b, "-", &a]);
    assert!(events.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)), "{}", events.id);
    publish(address, "a", &json!(2)).await;
    let header = [("Last-Event-ID", events.id.as_str())];
    let mut back = EventStream::open(address, "/v1/rooms/b,typing:1,a/sse", &header).await.expect("a stream");
    let mut seen = Vec::new();
    while seen.is_empty() {
        let (kind, data) = event(&mut back).await;
        match (kind.as_str(), data["room"].as_str()) {
            ("joined", Some("typing:1")) => assert!(data.get("resumed").is_none(), "no resume was asked for: {data}"),
            ("joined", _) => assert_eq!(data["resumed"], true, "{data}"),
            ("message", _) => seen.push(data["data"].clone()),
            _ => {}
        }
    }
    assert_eq!(seen, [json!(2)]);
}

/// A browser reconnects with the same URL. A room that was left by POST is joined again, from the cursor at which it was left.
#[tokio::test]
async fn a_left_room_of_the_url_keeps_its_part_of_the_event_id() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let mut client = TransportClient::join(address, Transport::Sse, &RoomRequest::of(&["a", "b"])).await;
    let at = publish(address, "a", &json!(1)).await;
    client.message().await;
    assert_eq!(client.ask(json!({"type": "leave", "room": "a"})).await["type"], "left");
    publish(address, "a", &json!(2)).await;
    let b = publish(address, "b", &json!(1)).await;
    assert_eq!(client.message().await["room"], "b", "no message of the room that was left");
    assert_eq!(client.cursor(), format!("{at}~{b}"));
    let mut back =
        TransportClient::open(address, Transport::Sse, &RoomRequest::of(&["a", "b"]).since(client.cursor())).await;
    assert_eq!(back.data(1).await, [json!(2)]);
}

/// The id of each `joined` has the cursors of all rooms, so that a client which is cut off between two of them resumes all of
/// its rooms.
#[tokio::test]
async fn a_resume_that_is_cut_off_loses_nothing() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let mut since = Vec::new();
    for room in ["a", "b", "c"] {
        let at = publish(address, room, &json!(0)).await;
        since.push(at);
        publish(address, room, &json!(1)).await;
    }
    let since = since.join("~");
    let mut id = since.clone();
    let mut seen = Vec::new();
    // Each connection reads one block of the stream more than the one before.
    for blocks in 1.. {
        let header = [("Last-Event-ID", id.as_str())];
        let mut events = EventStream::open(address, "/v1/rooms/a,b,c/sse", &header).await.expect("a stream");
        for _ in 0..blocks {
            let block = events.block().await;
            if block.event.as_ref().is_some_and(|event| event.kind == "message") {
                seen.push(parse(&block.event.unwrap().data)["room"].clone());
            }
        }
        if !events.id.is_empty() {
            events.id.clone_into(&mut id);
        }
        if seen.len() == 3 {
            break;
        }
    }
    seen.sort_by_key(ToString::to_string);
    assert_eq!(seen, [json!("a"), json!("b"), json!("c")], "each once, since {since}");
}

#[tokio::test]
async fn last_event_id_takes_precedence_over_since() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let first = publish(address, "a", &json!(1)).await;
    let second = publish(address, "a", &json!(2)).await;
    publish(address, "a", &json!(3)).await;
    let path = format!("/v1/rooms/a/sse?since={first}");
    let mut events = EventStream::open(address, &path, &[("Last-Event-ID", &second)]).await.expect("a stream");
    while event(&mut events).await.0 != "joined" {}
    assert_eq!(events.id, second);
    assert_eq!(event(&mut events).await.1["data"], 3);
    let mut events = EventStream::open(address, &path, &[("last-event-id", "")]).await.expect("a stream");
    while event(&mut events).await.0 != "joined" {}
    assert_eq!(events.id, first, "an empty id is ignored");
}

/// A room that was joined by POST is not in the id, since the URL with which a browser reconnects does not name it.
#[tokio::test]
async fn a_room_joined_by_post_is_not_in_the_event_id() {
    let cluster = Cluster::over_redis(1).start().await;
    let target = Target::direct(&cluster);
    let mut client = TransportClient::join(target.address(0), Transport::Sse, &RoomRequest::of(&["a"])).await;
    let before = client.cursor();
    assert_eq!(client.ask(json!({"type": "join", "room": "b"})).await["type"], "joined");
    assert_eq!(client.take("joined").await.json["room"], "b", "the stream has the cursor before its first message");
    publish(target.address(0), "b", &json!(1)).await;
    assert_eq!(client.message().await["room"], "b");
    assert_eq!(client.cursor(), before);
    let at = publish(target.address(0), "a", &json!(1)).await;
    assert_eq!((client.message().await["room"].as_str(), client.cursor()), (Some("a"), at.clone()));
    assert_eq!(split(&json!(at)).1, 1);
    assert_eq!(client.ask(json!({"type": "leave", "room": "b"})).await["type"], "left");
    assert_eq!(client.take("left").await.json["room"], "b");
}
