//! Refusals of requests by URL, the same for server-sent events, streams and polls: one invalid room refuses the whole
//! request.

use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::transport::{Refused, poll};
use fanfare_tests::{Client, RoomRequest, Transport, TransportClient, http};
use serde_json::json;

use super::publish;
use crate::fixtures::{one_node, one_node_with, split};

/// The last segments of the paths.
const ENDS: [&str; 3] = ["sse", "stream", "poll"];

const TYPING_OFF: &str = "[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n";

#[tokio::test]
async fn one_invalid_room_name_refuses_the_whole_request() {
    let cluster = one_node().await;
    for end in ENDS {
        for rooms in ["%24secret", "a%20b", "a,%7Bb%7D", "a,%C3%A9", &"x".repeat(256)] {
            let reply = http::get(cluster.address(0), &format!("/v1/rooms/{rooms}/{end}")).send().await;
            assert_eq!(reply.problem(400), "room_invalid", "{rooms} {end}");
        }
    }
    let body = json!({"rooms": {"a": null, "$b": null}});
    assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "room_invalid");
}

#[tokio::test]
async fn an_invalid_cursor_or_a_wrong_number_of_them_is_a_bad_request() {
    let cluster = one_node().await;
    for end in ENDS {
        for (rooms, since) in [
            ("a", "x"),
            ("a", "abcdefgh."),
            ("a", ".1"),
            ("a", "short.1"),
            ("a", "abcdefgh.1~abcdefgh.1"),
            ("a,b", "abcdefgh.1"),
            ("a,b", "abcdefgh.1~~"),
            ("a,b", "abcdefgh.1~x"),
        ] {
            let reply = http::get(cluster.address(0), &format!("/v1/rooms/{rooms}/{end}?since={since}")).send().await;
            assert_eq!(reply.problem(400), "bad_request", "{rooms} {end} {since}");
        }
    }
    let body = json!({"rooms": {"a": "short.1"}});
    assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "bad_request");
}

/// A browser repeats its last event id even to a server that no longer knows it, so the stream opens with a gap: a refusal
/// would end the browser's attempts for good.
#[tokio::test]
async fn an_invalid_last_event_id_is_a_gap() {
    let cluster = one_node().await;
    publish(cluster.address(0), "a", &json!(1)).await;
    for id in ["x", "short.1", "abcdefgh.1~abcdefgh.1", "~~", "…", "abcdefgh.99999999999999999999999"] {
        let header = [("Last-Event-ID", id)];
        let mut events = EventStream::open(cluster.address(0), "/v1/rooms/a/sse", &header).await.expect("a stream");
        let joined = loop {
            let event = events.block().await.event;
            if let Some(event) = event.filter(|event| event.kind == "joined") {
                break serde_json::from_str::<serde_json::Value>(&event.data).expect("JSON");
            }
        };
        let gap = (&joined["resumed"], &joined["gap"]);
        assert_eq!(gap, (&json!(false), &json!({"missed": null})), "{id}: {joined}");
        let message = events.block().await.event.expect("the kept messages follow");
        assert!(message.kind == "message" && message.data.contains(r#""data":1"#), "{id}: {message:?}");
    }
}

#[tokio::test]
async fn an_empty_cursor_means_the_head_of_that_room() {
    let cluster = one_node().await;
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let rooms = [format!("a:{number}"), format!("b:{number}")];
        let start = split(&json!(publish(cluster.address(0), &rooms[0], &json!("a 1")).await)).0 + ".0";
        publish(cluster.address(0), &rooms[1], &json!("b 1")).await;
        let request = RoomRequest::of(&[&rooms[0], &rooms[1]]).since(format!("{start}~"));
        let mut client = TransportClient::open(cluster.address(0), transport, &request).await;
        assert_eq!(client.data(1).await, [json!("a 1")], "{}", transport.name());
        let at = publish(cluster.address(0), &rooms[1], &json!("b 2")).await;
        assert_eq!(client.message().await["cursor"], json!(at), "{}: nothing of b before it", transport.name());
    }
}

#[tokio::test]
async fn more_rooms_than_a_session_may_join_are_refused() {
    let cluster = one_node_with("[limits]\nrooms_per_session = 2\n").await;
    for end in ENDS {
        let reply = http::get(cluster.address(0), &format!("/v1/rooms/a,b,c/{end}")).send().await;
        assert_eq!(reply.problem(400), "room_limit", "{end}");
    }
    for transport in [Transport::Sse, Transport::Stream] {
        let mut client = TransportClient::join(cluster.address(0), transport, &RoomRequest::of(&["a", "b"])).await;
        assert_eq!(client.welcome["limits"]["rooms"], 2);
        assert_eq!(
            client.ask(json!({"type": "join", "room": "c"})).await["code"],
            "room_limit",
            "{}",
            transport.name()
        );
    }
    poll::once(cluster.address(0), &RoomRequest::of(&["a", "b"])).await;
    let body = json!({"rooms": {"a": null, "b": null, "c": null}});
    assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "room_limit");
}

#[tokio::test]
async fn a_room_without_history_cannot_be_polled() {
    let cluster = one_node_with(TYPING_OFF).await;
    for path in ["/v1/rooms/typing:1/poll", "/v1/rooms/a,typing:1/poll?wait=0"] {
        assert_eq!(http::get(cluster.address(0), path).send().await.problem(400), "history_off", "{path}");
    }
    let body = json!({"rooms": {"a": null, "typing:1": null}});
    assert_eq!(poll::post(cluster.address(0), &body).send().await.problem(400), "history_off");
}

#[tokio::test]
async fn invalid_query_values_are_refused_and_unknown_ones_ignored() {
    let cluster = one_node().await;
    for query in [
        "sse?presence=maybe",
        "sse?echo=2",
        "sse?last=x",
        "stream?last=-1",
        "poll?wait=x",
        "poll?wait=-1",
        "poll?limit=x",
        "poll?last=x",
    ] {
        let reply = http::get(cluster.address(0), &format!("/v1/rooms/a/{query}")).send().await;
        assert_eq!(reply.problem(400), "bad_request", "{query}");
    }
    for transport in Transport::ALL {
        TransportClient::join(cluster.address(0), transport, &RoomRequest::of(&["a"]).with("colour=blue&n=0123")).await;
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let cluster = one_node().await;
    for end in ENDS {
        let head = http::call("HEAD", cluster.address(0), &format!("/v1/rooms/a/{end}")).send().await;
        assert_eq!(head.status, 405, "HEAD is refused: {head:?}");
        for method in ["POST", "PUT", "DELETE"] {
            let reply = http::call(method, cluster.address(0), &format!("/v1/rooms/a/{end}")).send().await;
            assert_eq!(reply.problem(405), "method_not_allowed", "{method} {end}");
            assert!(reply.header("allow").contains("GET"), "{reply:?}");
        }
    }
    let reply = http::get(cluster.address(0), "/v1/poll").send().await;
    assert_eq!((reply.problem(405).as_str(), reply.header("allow")), ("method_not_allowed", "POST"));
}

#[tokio::test]
async fn the_options_of_the_url_are_those_of_join() {
    let cluster = one_node().await;
    for transport in Transport::ONE_WAY {
        let (name, room) = (transport.name(), format!("room:{}", transport.name()));
        let request = RoomRequest::of(&[&room]).with("presence=1&echo=0");
        let mut client = TransportClient::open(cluster.address(0), transport, &request).await;
        let joined = client.take("joined").await.json;
        assert!(joined["members"].is_array(), "{name}: {joined}");
        let mut other = Client::connect(cluster.address(0)).await;
        other.join(&room).await;
        let user = other.session();
        let about_other = async |client: &mut TransportClient, kind: &str| {
            // The event about its own join may come first.
            while client.take(kind).await.json["member"]["user"] != user {}
        };
        about_other(&mut client, "member_joined").await;
        let published = client.ask(json!({"type": "publish", "room": room, "data": "own"})).await;
        assert_eq!(published["type"], "published", "{name}: {published}");
        other.publish(&room, json!("other")).await;
        assert_eq!(client.message().await["data"], "other", "{name}");
        drop(other);
        about_other(&mut client, "member_left").await;
    }
}

#[tokio::test]
async fn messages_of_excluded_sessions_are_delivered_neither_live_nor_on_resume() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let (mut own, mut other) = (Client::connect(address).await, Client::connect(address).await);
    let earlier = Client::connect(address).await.session();
    let exclude = format!("exclude={earlier},{}", own.session());
    for (number, transport) in [Transport::WebSocket, Transport::Sse, Transport::Stream].into_iter().enumerate() {
        let room = format!("room:{number}");
        let request = RoomRequest::of(&[&room]).with(&exclude);
        let start = TransportClient::join(address, transport, &request).await.cursor();
        own.publish(&room, json!("own, missed")).await;
        other.publish(&room, json!("other, missed")).await;
        let mut client = TransportClient::open(address, transport, &request.since(start)).await;
        assert_eq!(client.data(1).await, [json!("other, missed")], "{}", transport.name());
        own.publish(&room, json!("own, live")).await;
        let last = other.publish(&room, json!("other, live")).await["cursor"].clone();
        assert_eq!(client.data(1).await, [json!("other, live")], "{}", transport.name());
        assert_eq!(json!(client.cursor()), last, "{}", transport.name());
    }
    let nine = [earlier.as_str(); 9].join(",");
    for (end, exclude) in [("sse", nine.as_str()), ("stream", nine.as_str()), ("sse", "x"), ("stream", "x,")] {
        let reply = http::get(address, &format!("/v1/rooms/a/{end}?exclude={exclude}")).send().await;
        assert_eq!(reply.problem(400), "bad_request", "{end} {exclude}");
    }
}

#[tokio::test]
async fn a_room_list_is_not_empty_and_has_no_duplicates() {
    let cluster = one_node().await;
    for end in ENDS {
        for path in [format!("/v1/rooms/a,b,a/{end}"), format!("/v1/rooms/a/{end}?room=a"), format!("/v1/rooms//{end}")]
        {
            let reply = http::get(cluster.address(0), &path).send().await;
            assert_eq!(reply.problem(400), "bad_request", "{path}");
        }
    }
}

#[tokio::test]
async fn a_room_without_presence_can_still_be_joined() {
    let cluster = one_node_with("[[rooms]]\nmatch = \"quiet:*\"\npresence = false\n").await;
    for end in ["sse", "stream"] {
        let reply = http::get(cluster.address(0), &format!("/v1/rooms/a,quiet:1/{end}?presence=1")).send().await;
        assert_eq!(reply.problem(400), "presence_off", "{end}: presence was asked for");
    }
    for transport in Transport::ONE_WAY {
        let mut client = TransportClient::join(cluster.address(0), transport, &RoomRequest::of(&["quiet:1"])).await;
        assert_eq!(client.ask(json!({"type": "presence", "room": "quiet:1"})).await["code"], "presence_off");
        publish(cluster.address(0), "quiet:1", &json!(1)).await;
        assert_eq!(client.data(1).await, [json!(1)], "{}", transport.name());
    }
}

#[tokio::test]
async fn rooms_in_the_query_may_have_commas() {
    let cluster = one_node().await;
    for transport in [Transport::Sse, Transport::Stream, Transport::LongPoll] {
        let request = RoomRequest::of(&["a"]).with("room=x%2Cy");
        let path = request.path(transport, None);
        let at = publish(cluster.address(0), "x,y", &json!(transport.name())).await;
        let cursor = match transport {
            Transport::LongPoll => poll::served(&http::get(cluster.address(0), &path).send().await).cursor().to_owned(),
            _ => cursor_of_both(TransportClient::try_open(cluster.address(0), transport, &request).await).await,
        };
        let parts: Vec<&str> = cursor.split('~').collect();
        assert_eq!((parts.len(), parts[1]), (2, at.as_str()), "{}: {cursor}", transport.name());
    }
}

/// The cursors of both rooms from their `joined` frames; `TransportClient` knows only the room of its path.
async fn cursor_of_both(client: Result<TransportClient, Refused>) -> String {
    let mut client = client.expect("both rooms are joined");
    let mut cursors = std::collections::BTreeMap::new();
    for _ in 0..2 {
        let joined = client.take("joined").await.json;
        cursors.insert(joined["room"].to_string(), joined["cursor"].as_str().unwrap_or_default().to_owned());
    }
    cursors.into_values().collect::<Vec<_>>().join("~")
}
