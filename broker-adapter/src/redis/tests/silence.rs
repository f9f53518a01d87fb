//! What nobody says: messages whose PUBLISH is lost while every connection stays up, and keys that Redis forgets one by
//! one. The sweep of quiet rooms finds it.

use super::{Config, Gateway, server::Server};
use crate::{
    Broker, Cursor, Offset, Room,
    contract::{room, texts},
    redis::keys::{Keys, Part},
};
use std::time::Duration;

/// Sweeps often enough for tests.
fn swept(server: &Server) -> Config {
    Config { sweep: Duration::from_millis(200), ..server.config() }
}

/// A room's meta and stream.
fn keys(room: &Room) -> Vec<String> {
    let names = Keys::new("fanfare", false);
    vec![names.of(Part::Meta, room), names.of(Part::Stream, room)]
}

/// Gives a message its place and keeps it, as publishing does, but sends it to nobody.
const UNSENT: &str = "
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][2][2]
    redis.call('XADD', KEYS[2], redis.call('HINCRBY', KEYS[1], 's', 1) .. '-0', 'd', last)";

async fn told_head(gateway: &Gateway, room: &Room, told: usize) -> Cursor {
    let heads = |seen: &crate::contract::Seen| Some(seen.heads(room)).filter(|heads| heads.len() == told);
    *gateway.node.seen.wait_for("the head", heads).await.last().unwrap()
}

#[tokio::test]
async fn a_message_whose_publish_was_lost_in_silence_is_found() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("silent");
    let head = a.node.subscribe(&room).await;
    let first = a.node.say(&room, "said").await;
    server.eval(UNSENT, &keys(&room)).await;
    let told = told_head(&a, &room, 1).await;
    assert_eq!(told, Cursor::new(head.epoch, Offset(2)));
    let page = a.node.since(&room, first, 10).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["said".to_owned()], None));
    a.node.say(&room, "later").await;
    assert_eq!(a.node.seen.messages(&room, 2).await.len(), 2, "and delivery goes on");
    assert_eq!(a.broker.status().reconnects, 0);
}

#[tokio::test]
async fn a_room_whose_meta_was_evicted_begins_a_new_epoch_and_its_members_are_told() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("no-meta");
    let before = a.node.subscribe(&room).await;
    a.node.say(&room, "one").await;
    server.tell(&format!("DEL {}", keys(&room)[0])).await;
    let told = told_head(&a, &room, 1).await;
    assert!(told.epoch != before.epoch && told.offset == Offset(0), "{told}");
    assert_eq!(a.node.say(&room, "two").await, Cursor::new(told.epoch, Offset(1)));
}

/// The head is known, so members miss nothing; only who comes back later learns that the past is gone.
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
    server.tell(&format!("DEL {}", keys(&room)[1])).await;
    // Two sweeps go by: the other room's losses are found in both.
    for told in 1..=2 {
        server.eval(UNSENT, &keys(&other)).await;
        told_head(&a, &other, told).await;
    }
    assert_eq!(a.node.seen.now().heads(&room), [], "nobody missed anything");
    assert_eq!(a.node.say(&room, "two").await, Cursor::new(one.epoch, one.offset.next()));
}

#[tokio::test]
async fn a_flush_is_a_new_epoch_for_quiet_rooms_too() {
    let server = Server::start().await;
    let a = Gateway::connect(swept(&server)).await;
    let room = room("flushed");
    let before = a.node.subscribe(&room).await;
    let last = a.node.say(&room, "one").await;
    server.tell("FLUSHALL").await;
    let told = told_head(&a, &room, 1).await;
    assert!(told.epoch != before.epoch && told.offset == Offset(0), "{told}");
    let page = a.node.since(&room, last, 10).await;
    assert_eq!((page.head, page.gap), (told, Some(crate::Gap { missed: None })));
}
