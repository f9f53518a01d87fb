//! Difficult data in an event stream, read by a parser that was written from the standard alone. A browser gets the messages
//! of a WebSocket, and no publisher can forge a field of the stream.

use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::transport::sse_parser::{SseBlock, SseEvent, SseParser};
use fanfare_tests::wait::within;
use fanfare_tests::{Client, http};
use serde_json::{Value, json};

use super::alike::DIFFICULT;
use super::texts;
use crate::fixtures::one_node;

/// The default of `message_bytes`.
const MESSAGE_BYTES: usize = 65_536;

/// Event names that have a meaning in an event stream.
const NAMES: [&str; 8] = ["message", "error", "open", "close", "welcome", "a\nid:9", "\u{feff}", "…\r\n\r\ndata:x"];

/// A room's name with characters that have a meaning in an event stream or in a URL.
const ROOM: &str = "id:1,data:x/%2F?&=+'~!";

#[tokio::test]
async fn an_event_stream_carries_exactly_the_messages_of_a_websocket() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let path = format!("/v1/rooms/a/sse?room={}", fanfare_tests::transport::encode(ROOM));
    let mut events = EventStream::open(address, &path, &[]).await.expect("a stream");
    let mut member = fanfare_tests::TransportClient::join(
        address,
        fanfare_tests::Transport::WebSocket,
        &fanfare_tests::RoomRequest::of(&["a"]).with(&format!("room={}", fanfare_tests::transport::encode(ROOM))),
    )
    .await;
    member.take("joined").await;
    let mut publisher = Client::connect(address).await;
    let mut count = 0;
    for room in ["a", ROOM] {
        for data in DIFFICULT {
            let room = json!(room);
            publisher.send_text(&format!(r#"{{"type":"publish","id":1,"room":{room},"data":{data}}}"#)).await;
            publisher.take("published").await;
            count += 1;
        }
        for name in NAMES {
            publisher.publish_with(json!({"room": room, "event": name, "data": name})).await;
            count += 1;
        }
    }
    for large in ["x".repeat(MESSAGE_BYTES - 2), "\u{2028}".repeat(MESSAGE_BYTES / 3 - 1)] {
        publisher.publish("a", json!(large)).await;
        count += 1;
    }
    let post = http::call("POST", address, "/v1/rooms/a").header("content-type", "text/plain");
    post.body("data: as text\r\n\r\nid: 5\n\n\u{0}").send().await.expect(200);
    count += 1;

    let expected = texts(&mut member, count).await;
    let (raw, blocks) = read(&mut events, count).await;
    let seen: Vec<&SseEvent> = messages(&blocks);
    assert_eq!(seen.iter().map(|event| event.data.as_str()).collect::<Vec<_>>(), expected);
    for (event, text) in seen.iter().zip(&expected) {
        let message: Value = serde_json::from_str(text).expect("JSON");
        let cursor = message["cursor"].as_str().expect("a cursor");
        let part = usize::from(message["room"] != "a");
        assert_eq!(event.id.split('~').nth(part), Some(cursor), "{text}");
    }
    the_same_however_it_is_cut(&raw, &blocks);
    for block in &blocks {
        let text = std::str::from_utf8(&block.raw).expect("a stream is UTF-8");
        assert!(!text.contains('\r') && !text.contains('\0'), "{text:?}");
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let of = |field: &str| lines.iter().filter(|line| line.starts_with(field)).count();
        let all = of("data:") + of("id:") + of("event:") + of("retry:");
        assert!(all == lines.len() && of("data:") <= 1 && of("id:") <= 1 && of("event:") <= 1, "{text:?}");
    }
}

/// Reads up to the message number `count`: all bytes, and the blocks in them.
async fn read(events: &mut EventStream, count: usize) -> (Vec<u8>, Vec<SseBlock>) {
    let (mut raw, mut blocks) = (Vec::new(), Vec::new());
    while messages(&blocks).len() < count {
        match within("the next message", events.next()).await {
            Ok(Some(block)) => {
                raw.extend_from_slice(&block.raw);
                blocks.push(block);
            }
            end => panic!("the stream has ended: {end:?}"),
        }
    }
    (raw, blocks)
}

/// The events for which a page's `onmessage` would be called.
fn messages(blocks: &[SseBlock]) -> Vec<&SseEvent> {
    blocks.iter().filter_map(|block| block.event.as_ref()).filter(|event| event.kind == "message").collect()
}

fn the_same_however_it_is_cut(raw: &[u8], expected: &[SseBlock]) {
    for step in [1, 2, 3, 1_000, raw.len()] {
        let (mut parser, mut blocks) = (SseParser::default(), Vec::new());
        for piece in raw.chunks(step) {
            parser.feed(piece, |block| blocks.push(block));
        }
        assert!(blocks == expected, "pieces of {step}");
    }
}
