//! Cases about the promise of `subscribe`: everything after the head that it returns is delivered.

use super::{TestNode, message, offsets, room, texts};
use crate::{Cursor, Publication, Publish, Room};

/// The offsets after `head`: a subscriber skips the others.
fn after(head: Cursor, seen: &[Publication]) -> Vec<u64> {
    offsets(seen).into_iter().filter(|offset| *offset > head.offset.0).collect()
}

/// Joins begin while another node publishes. However the two interleave, head and messages fit together.
pub async fn a_subscriber_has_everything_after_its_head(nodes: &[TestNode]) {
    for _ in 0..150 {
        let room = room("join-race");
        let publishing = async {
            for i in 0..5 {
                nodes[1].say(&room, &i.to_string()).await;
            }
        };
        let ((), head) = tokio::join!(publishing, nodes[0].subscribe(&room));
        assert_eq!(nodes[2].say(&room, "last").await.offset.0, 6);
        let what = format!("the last message of {room}");
        let seen = nodes[0].seen.wait_for(&what, |s| Some(s.messages(&room)).filter(|m| offsets(m).contains(&6))).await;
        assert_eq!(after(head, &seen), (head.offset.0 + 1..=6).collect::<Vec<_>>(), "after the head {head}");
    }
}

/// Another node publishes as soon as `subscribe` has returned.
pub async fn a_publish_right_after_the_join_is_heard(nodes: &[TestNode]) {
    for i in 0..300 {
        let room = room("join-then");
        let retention = (i % 2 == 0).then_some(super::KEEP);
        nodes[0].broker.subscribe(nodes[0].me, &room, retention).await.unwrap();
        nodes[1].publish(Publish { retention, ..message(&room, "now") }).await;
        assert_eq!(nodes[0].seen.messages(&room, 1).await.len(), 1);
    }
}

pub async fn unsubscribing_ends_deliveries(nodes: &[TestNode]) {
    let room = room("leave");
    let (leaver, stayer) = (&nodes[0], &nodes[2]);
    leaver.subscribe(&room).await;
    stayer.subscribe(&room).await;
    nodes[1].say(&room, "before").await;
    leaver.seen.messages(&room, 1).await;
    leaver.broker.unsubscribe(leaver.me, &room);
    // A few deliveries may still be under way: they have ended when none of a whole round of messages comes.
    let mut published = 1;
    for round in 0.. {
        assert!(round < 50, "deliveries go on after unsubscribe");
        let before = leaver.seen.now().messages(&room).len();
        for _ in 0..20 {
            nodes[1].say(&room, "after").await;
            published += 1;
        }
        stayer.seen.messages(&room, published).await;
        if leaver.seen.now().messages(&room).len() == before {
            break;
        }
    }
}

pub async fn subscribing_again_begins_deliveries_again(nodes: &[TestNode]) {
    let room = room("again");
    let first = nodes[0].subscribe(&room).await;
    assert_eq!(nodes[0].subscribe(&room).await, first, "subscribing twice is subscribing once");
    nodes[1].say(&room, "one").await;
    nodes[0].seen.messages(&room, 1).await;
    nodes[0].broker.unsubscribe(nodes[0].me, &room);
    nodes[1].say(&room, "two").await;
    let head = nodes[0].subscribe(&room).await;
    assert_eq!((head.epoch, head.offset.0), (first.epoch, 2));
    nodes[1].say(&room, "three").await;
    let seen = nodes[0]
        .seen
        .wait_for("the third message", |s| Some(s.messages(&room)).filter(|m| texts(m).iter().any(|t| t == "three")))
        .await;
    assert_eq!(after(head, &seen), [3]);
    assert_eq!(texts(&seen).iter().filter(|t| *t == "one").count(), 1, "followed twice, delivered once");
}

/// A member that joins and leaves faster than the backplane replies is subscribed if it joined last.
pub async fn joining_and_leaving_quickly_never_loses_a_subscription(nodes: &[TestNode]) {
    let rooms: Vec<Room> = (0..4).map(|_| room("flap")).collect();
    for round in 0..60u64 {
        for room in &rooms {
            for _ in 0..round % 4 {
                drop(nodes[0].broker.subscribe(nodes[0].me, room, Some(super::KEEP)));
                nodes[0].broker.unsubscribe(nodes[0].me, room);
            }
        }
        for room in &rooms {
            let head = nodes[0].subscribe(room).await;
            assert_eq!(head.offset.0, round);
            let cursor = nodes[1].say(room, "hi").await;
            let what = format!("offset {} of {room}", cursor.offset.0);
            nodes[0]
                .seen
                .wait_for(&what, |s| s.messages(room).last().is_some_and(|m| m.cursor == Some(cursor)).then_some(()))
                .await;
            nodes[0].broker.unsubscribe(nodes[0].me, room);
        }
    }
}
