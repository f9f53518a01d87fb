//! Losses without any sign: messages whose push is lost while every connection stays up, and keys that Redis evicts one
//! by one. The sweep of quiet rooms finds them.

use super::{Gateway, RedisConfig, server::Server};
use crate::{
    Broker, Cursor, Offset, Room,
    contract::{room, texts},
    redis::keys::{Keys, Part},
};
use std::time::Duration;

/// A configuration that sweeps often enough for tests.
fn swept(server: &Server) -> RedisConfig {
    RedisConfig { sweep: Duration::from_millis(200), ..server.config() }
}

/// A room's meta and stream.
fn keys(room: &Room) -> Vec<String> {
    let keys = Keys::new("fanfare", 0, false);
    vec![keys.of(Part::META, room), keys.of(Part::STREAM, room)]
}

/// Gives a message its offset and keeps it, as publishing does, but does not send it.
const UNSENT: &str = "
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][2][2]
    redis.call('XADD', KEYS[2], redis.call('HINCRBY', KEYS[1], 's', 1) .. '-0', 'd', last)";

/// Waits until `count` heads of a room were delivered, and returns the last one.
async fn delivered_head(gateway: &Gateway, room: &Room, count: usize) -> Cursor {
    let heads = |seen: &crate::contract::Seen| Some(seen.heads(room)).filter(|heads| heads.len() == count);
    *gateway.node.seen.wait_for("the head", heads).await.last().unwrap()
}

#[tokio::test]
async fn a_message_whose_push_was_lost_unnoticed_is_found() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("silent");
    let head = a.node.subscribe(&room).await;
    let first = a.node.say(&room, "said").await;
    server.eval(UNSENT, &keys(&room)).await;
    let head_now = delivered_head(&a, &room, 1).await;
    assert_eq!(head_now, Cursor::new(head.epoch, Offset(2)));
    let page = a.node.since(&room, first, 10).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["said".to_owned()], None));
    a.node.say(&room, "later").await;
    assert_eq!(a.node.seen.messages(&room, 2).await.len(), 2, "deliveries go on");
    assert_eq!(a.broker.status().reconnects, 0);
}

#[tokio::test]
async fn a_room_whose_meta_was_evicted_begins_a_new_epoch_and_delivers_its_head() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("no-meta");
    let before = a.node.subscribe(&room).await;
    a.node.say(&room, "one").await;
    server.command(&format!("DEL {}", keys(&room)[0])).await;
    let head_now = delivered_head(&a, &room, 1).await;
    assert!(head_now.epoch != before.epoch && head_now.offset == Offset(0), "{head_now}");
    assert_eq!(a.node.say(&room, "two").await, Cursor::new(head_now.epoch, Offset(1)));
}

/// Redis still has the head, so members miss nothing; a client that resumes later gets a gap.
#[tokio::test]
async fn a_room_whose_stream_was_evicted_keeps_its_epoch_and_its_offsets() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let (room, other) = (room("no-stream"), room("other"));
    for room in [&room, &other] {
        a.node.subscribe(room).await;
    }
    let one = a.node.say(&room, "one").await;
    a.node.say(&other, "one").await;
    server.command(&format!("DEL {}", keys(&room)[1])).await;
    // Two sweeps pass: each finds a loss in the other room.
    for count in 1..=2 {
        server.eval(UNSENT, &keys(&other)).await;
        delivered_head(&a, &other, count).await;
    }
    assert_eq!(a.node.seen.now().heads(&room), [], "members have missed nothing");
    assert_eq!(a.node.say(&room, "two").await, Cursor::new(one.epoch, one.offset.next()));
}

#[tokio::test]
async fn a_flush_begins_a_new_epoch_in_quiet_rooms_too() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("flushed");
    let before = a.node.subscribe(&room).await;
    let last = a.node.say(&room, "one").await;
    server.command("FLUSHALL").await;
    let head_now = delivered_head(&a, &room, 1).await;
    assert!(head_now.epoch != before.epoch && head_now.offset == Offset(0), "{head_now}");
    let page = a.node.since(&room, last, 10).await;
    assert_eq!((page.head, page.gap), (head_now, Some(crate::Gap { missed: None })));
}
