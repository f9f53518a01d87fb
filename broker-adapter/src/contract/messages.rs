//! Cases about order, acknowledgement, payloads and idempotency keys.

use super::{TestNode, keyed, message, offsets, room, texts};
use crate::{Publish, Reply, Room};
use bytes::Bytes;
use std::collections::HashSet;
use tokio::task::JoinSet;

pub async fn every_node_sees_one_order(nodes: &[TestNode]) {
    const EACH: usize = 200;
    let room = room("order");
    for node in nodes {
        node.subscribe(&room).await;
    }
    let mut publishers = JoinSet::new();
    for (n, node) in nodes.iter().cloned().enumerate() {
        let room = room.clone();
        publishers.spawn(async move {
            for i in 0..EACH {
                node.say(&room, &format!("{n}:{i}")).await;
            }
        });
    }
    publishers.join_all().await;
    let total = EACH * nodes.len();
    let first = nodes[0].seen.messages(&room, total).await;
    assert_eq!(offsets(&first), (1..=total as u64).collect::<Vec<_>>(), "from 1, each once");
    for node in nodes {
        let seen = node.seen.messages(&room, total).await;
        assert_eq!(texts(&seen), texts(&first));
        assert_eq!(offsets(&seen), offsets(&first));
    }
    for n in 0..nodes.len() {
        let own: Vec<_> = texts(&first).into_iter().filter(|t| t.starts_with(&format!("{n}:"))).collect();
        assert_eq!(own, (0..EACH).map(|i| format!("{n}:{i}")).collect::<Vec<_>>(), "in the publisher's order");
    }
}

pub async fn the_acknowledged_cursor_is_the_one_that_members_see(nodes: &[TestNode]) {
    let room = room("ack");
    let head = nodes[0].subscribe(&room).await;
    assert_eq!(head.offset.0, 0);
    let mut acknowledged = Vec::new();
    for i in 0..30 {
        acknowledged.push(nodes[i % nodes.len()].say(&room, &i.to_string()).await);
    }
    let seen = nodes[0].seen.messages(&room, 30).await;
    assert_eq!(seen.iter().map(|p| p.cursor.unwrap()).collect::<Vec<_>>(), acknowledged);
    assert_eq!(acknowledged[0].epoch, head.epoch, "the first message continues the epoch of the empty room");
    let ids: HashSet<_> = seen.iter().map(|p| p.id).collect();
    assert_eq!(ids.len(), 30, "every message has its own id");
}

pub async fn a_thread_s_publishes_keep_their_order(nodes: &[TestNode]) {
    const COUNT: usize = 2000;
    for retention in [message(&room("x"), "").retention, None] {
        let room = room("pipelined");
        nodes[1].broker.subscribe(nodes[1].me, &room, retention).await.unwrap();
        for i in 0..COUNT {
            let publish = Publish { retention, ..message(&room, &i.to_string()) };
            nodes[0].broker.publish(publish, Reply::Nobody);
        }
        let seen = nodes[1].seen.messages(&room, COUNT).await;
        assert_eq!(texts(&seen), (0..COUNT).map(|i| i.to_string()).collect::<Vec<_>>());
    }
}

pub async fn payloads_are_untouched(nodes: &[TestNode]) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads = [Bytes::new(), Bytes::from(every_byte), Bytes::from(vec![0xA5; 64 * 1024])];
    for retention in [message(&room("x"), "").retention, None] {
        let room = room("bytes");
        nodes[1].broker.subscribe(nodes[1].me, &room, retention).await.unwrap();
        for payload in &payloads {
            nodes[0].publish(Publish { retention, payload: payload.clone(), ..message(&room, "") }).await;
        }
        let seen = nodes[1].seen.messages(&room, payloads.len()).await;
        for (publication, payload) in seen.iter().zip(&payloads) {
            assert!(publication.payload == *payload, "{} bytes live", payload.len());
            assert_eq!(publication.author, message(&room, "").author);
            assert_eq!(publication.ts_ms, message(&room, "").ts_ms);
        }
        if retention.is_some() {
            let kept = nodes[2].last(&room, 10).await.publications;
            assert_eq!(kept.len(), payloads.len());
            for (kept, live) in kept.iter().zip(&seen) {
                assert!(kept.payload == live.payload, "{} bytes from history", live.payload.len());
                assert_eq!((kept.id, kept.author, kept.ts_ms), (live.id, live.author, live.ts_ms));
                assert_eq!(kept.cursor, live.cursor);
            }
        }
    }
}

pub async fn a_room_without_history_has_no_cursors(nodes: &[TestNode]) {
    let room = room("live-only");
    for node in nodes {
        assert_eq!(node.broker.subscribe(node.me, &room, None).await, Ok(None));
    }
    let published = nodes[0].publish(Publish { retention: None, ..message(&room, "hi") }).await;
    assert_eq!((published.cursor, published.duplicate), (None, false));
    for node in nodes {
        let seen = node.seen.messages(&room, 1).await;
        assert_eq!((seen[0].cursor, seen.len()), (None, 1));
    }
}

pub async fn messages_reach_only_their_room(nodes: &[TestNode]) {
    let base = room("mix");
    let rooms: Vec<Room> =
        ["", ":c", ",x", "*", "/..", " "].iter().filter_map(|s| Room::parse(&format!("{base}{s}")).ok()).collect();
    assert_eq!(rooms.len(), 5);
    for room in &rooms {
        nodes[0].subscribe(room).await;
    }
    for room in &rooms {
        assert_eq!(nodes[1].say(room, room.as_str()).await.offset.0, 1);
    }
    for room in &rooms {
        assert_eq!(texts(&nodes[0].seen.messages(room, 1).await), [room.as_str()]);
    }
}

pub async fn the_same_key_publishes_once(nodes: &[TestNode]) {
    let (here, there) = (room("key"), room("key"));
    nodes[2].subscribe(&here).await;
    let first = nodes[0].publish(keyed(&here, "one", "k:1")).await;
    let again = nodes[0].publish(keyed(&here, "two", "k:1")).await;
    let elsewhere = nodes[1].publish(keyed(&here, "three", "k:1")).await;
    assert!(!first.duplicate && again.duplicate && elsewhere.duplicate);
    assert_eq!((again.cursor, elsewhere.cursor), (first.cursor, first.cursor));
    assert!(!nodes[0].publish(keyed(&there, "one", "k:1")).await.duplicate, "keys are scoped to their room");
    assert!(!nodes[0].publish(keyed(&here, "four", "k:2")).await.duplicate);
    assert_eq!(texts(&nodes[2].seen.messages(&here, 2).await), ["one", "four"]);
    assert_eq!(texts(&nodes[1].last(&here, 10).await.publications), ["one", "four"]);
}

pub async fn the_same_key_from_two_nodes_at_once_publishes_once(nodes: &[TestNode]) {
    let room = room("key-race");
    nodes[2].subscribe(&room).await;
    for i in 0..50 {
        let key = format!("k{i}");
        let (a, b) =
            tokio::join!(nodes[0].publish(keyed(&room, &key, &key)), nodes[1].publish(keyed(&room, &key, &key)),);
        assert!(a.duplicate ^ b.duplicate, "exactly one of the two is published");
        assert_eq!(a.cursor, b.cursor);
    }
    let seen = nodes[2].seen.messages(&room, 50).await;
    assert_eq!(texts(&seen), (0..50).map(|i| format!("k{i}")).collect::<Vec<_>>());
}

pub async fn the_same_key_publishes_once_without_history(nodes: &[TestNode]) {
    let room = room("key-live");
    nodes[2].broker.subscribe(nodes[2].me, &room, None).await.unwrap();
    let live = |text, key| Publish { retention: None, ..keyed(&room, text, key) };
    let first = nodes[0].publish(live("one", "k")).await;
    let again = nodes[1].publish(live("two", "k")).await;
    assert_eq!((first.duplicate, again.duplicate), (false, true));
    assert_eq!((first.cursor, again.cursor), (None, None));
    nodes[0].publish(live("three", "k3")).await;
    assert_eq!(texts(&nodes[2].seen.messages(&room, 2).await), ["one", "three"]);
}
