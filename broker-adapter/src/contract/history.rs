//! Cases about a room's history: pages, gaps, epochs, retention.

use super::{TestNode, message, offsets, room};
use crate::{Cursor, Epoch, Gap, HistoryQuery, Offset, Publish, Retention, Room};
use std::time::Duration;

async fn fill(node: &TestNode, room: &Room, count: usize) -> Cursor {
    let mut last = None;
    for i in 0..count {
        last = Some(node.say(room, &i.to_string()).await);
    }
    last.expect("something was published")
}

fn at(cursor: Cursor, offset: u64) -> Cursor {
    Cursor::new(cursor.epoch, Offset(offset))
}

pub async fn the_last_messages_are_read(nodes: &[TestNode]) {
    let room = room("last");
    let head = fill(&nodes[0], &room, 10).await;
    let page = nodes[1].last(&room, 3).await;
    assert_eq!((offsets(&page.publications), page.head, page.gap), (vec![8, 9, 10], head, None));
    assert_eq!((page.from, page.end()), (at(head, 7), head));
    let page = nodes[2].last(&room, 100).await;
    assert_eq!((offsets(&page.publications).len(), page.from), (10, at(head, 0)));
    let page = nodes[2].last(&room, 0).await;
    assert_eq!((page.publications.len(), page.from, page.head), (0, head, head));
}

pub async fn messages_since_a_cursor_are_read(nodes: &[TestNode]) {
    let room = room("since");
    let head = fill(&nodes[0], &room, 10).await;
    for since in 0..=10 {
        let page = nodes[1].since(&room, at(head, since), 100).await;
        assert_eq!(offsets(&page.publications), (since + 1..=10).collect::<Vec<_>>());
        assert_eq!((page.from, page.head, page.gap, page.end()), (at(head, since), head, None, head));
    }
}

pub async fn pages_follow_one_another(nodes: &[TestNode]) {
    let room = room("pages");
    let head = fill(&nodes[0], &room, 25).await;
    let (mut at, mut seen) = (at(head, 0), Vec::new());
    while at != head {
        let page = nodes[2].since(&room, at, 10).await;
        assert!(page.publications.len() <= 10 && page.gap.is_none());
        assert_eq!(page.from, at);
        seen.extend(offsets(&page.publications));
        at = page.end();
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
}

pub async fn trimmed_messages_are_counted_in_the_gap(nodes: &[TestNode]) {
    let room = room("trim");
    let few = Retention { messages: 5, ttl: Duration::from_secs(300) };
    let mut head = None;
    for _ in 0..1000 {
        head = nodes[0].publish(Publish { retention: Some(few), ..message(&room, "x") }).await.cursor;
    }
    let head = head.unwrap();
    let page = nodes[1].since(&room, at(head, 0), 1000).await;
    let kept = page.publications.len() as u64;
    assert!((5..1000).contains(&kept), "{kept} are kept");
    assert_eq!(offsets(&page.publications), (1001 - kept..=1000).collect::<Vec<_>>());
    assert_eq!(page.gap, Some(Gap { missed: Some(1000 - kept) }));
    assert_eq!((page.from, page.head), (at(head, 1000 - kept), head));
    let page = nodes[1].since(&room, at(head, 997), 1000).await;
    assert_eq!((offsets(&page.publications), page.gap), (vec![998, 999, 1000], None));
}

pub async fn a_cursor_of_another_epoch_is_a_gap(nodes: &[TestNode]) {
    let room = room("epoch");
    let head = fill(&nodes[0], &room, 3).await;
    for other in [Epoch::random(), Epoch::FOREIGN] {
        let page = nodes[1].since(&room, Cursor::new(other, Offset(2)), 100).await;
        assert_eq!(page.gap, Some(Gap { missed: None }));
        assert_eq!((offsets(&page.publications), page.from), (vec![1, 2, 3], at(head, 0)));
    }
}

pub async fn a_cursor_beyond_the_head_is_a_gap(nodes: &[TestNode]) {
    let room = room("beyond");
    let head = fill(&nodes[0], &room, 3).await;
    for beyond in [4, u64::MAX] {
        let page = nodes[1].since(&room, at(head, beyond), 100).await;
        assert_eq!(page.gap, Some(Gap { missed: None }));
        assert_eq!((offsets(&page.publications), page.from, page.head), (vec![1, 2, 3], at(head, 0), head));
    }
}

pub async fn an_empty_room_has_a_stable_head(nodes: &[TestNode]) {
    let room = room("empty");
    let head = nodes[0].subscribe(&room).await;
    assert_eq!(head.offset, Offset(0));
    for node in nodes {
        let page = node.last(&room, 10).await;
        assert_eq!((page.publications.len(), page.head, page.from, page.gap), (0, head, head, None));
        let page = node.since(&room, head, 10).await;
        assert_eq!((page.publications.len(), page.head, page.gap), (0, head, None));
    }
    assert_eq!(nodes[1].say(&room, "first").await, at(head, 1));
}

pub async fn at_least_the_configured_number_of_messages_is_kept(nodes: &[TestNode]) {
    let room = room("keep");
    for messages in [1, 10, 100] {
        let keep = Retention { messages, ttl: Duration::from_secs(60) };
        for _ in 0..150 {
            nodes[0].publish(Publish { retention: Some(keep), ..message(&room, "x") }).await;
        }
        let query = HistoryQuery { since: None, limit: messages as usize, purpose: crate::Purpose::Question };
        let page = nodes[1].broker.history(&room, keep, query).await.unwrap();
        assert_eq!(page.publications.len(), messages as usize);
        assert_eq!(page.publications.last().unwrap().cursor, Some(page.head));
    }
}

/// A message that is published when an earlier one is about to expire is still kept for its own whole time.
pub async fn each_message_is_kept_for_its_ttl(nodes: &[TestNode]) {
    // On a busy machine all replies of a round may come too late to prove anything.
    for _ in 0..10 {
        if last_message_is_kept(nodes).await {
            return;
        }
    }
    panic!("in ten rounds no reply came after the first message's time and before the end of the last one's");
}

/// One round in a fresh room. `false`: no reply came after the first message's time and before the end of the last
/// one's.
async fn last_message_is_kept(nodes: &[TestNode]) -> bool {
    let room = room("ttl");
    let keep = Retention { messages: 100, ttl: Duration::from_secs(3) };
    let query = HistoryQuery { since: None, limit: 1, purpose: crate::Purpose::Question };
    let started = tokio::time::Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    let (mut last, mut checks) = (started, 0);
    while last.elapsed() < Duration::from_millis(2500) {
        let now = pace.tick().await;
        if now.duration_since(started) < Duration::from_millis(2500) {
            last = now;
            nodes[0].publish(Publish { retention: Some(keep), ..message(&room, "x") }).await;
        }
        let asked = tokio::time::Instant::now();
        let page = nodes[1].broker.history(&room, keep, query).await.unwrap();
        // A reply that came after the last message's time proves nothing. One to a question from before the end of the
        // first message's time has to be right too, but does not count.
        if last.elapsed() < keep.ttl {
            assert_eq!(page.publications.len(), 1, "{:?} after it was published", last.elapsed());
            assert_eq!(page.publications[0].cursor, Some(page.head));
            checks += u32::from(asked.duration_since(started) >= keep.ttl);
        }
    }
    checks > 0
}
