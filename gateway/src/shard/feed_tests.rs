//! A model test of `Feed`: a room, deliveries of which some are lost, and history. Members see every message once and
//! in order, or are told a gap.

use super::*;
use fanfare_broker::{Epoch, Gap, MessageId, NodeId, Offset};
use proptest::prelude::*;

fn cursor(offset: u64) -> Cursor {
    Cursor::new(Epoch::from_bytes(*b"aaaaaaaa").unwrap(), Offset(offset))
}

fn message(offset: u64) -> Publication {
    Publication {
        cursor: Some(cursor(offset)),
        id: MessageId { node: NodeId(1), number: offset },
        author: None,
        ts_ms: 0,
        payload: bytes::Bytes::new(),
    }
}

/// History that keeps the messages after `oldest`, and answers in pages of `limit`.
fn page(since: Cursor, oldest: u64, head: u64, limit: u64) -> Page {
    let from = since.offset.0.max(oldest);
    let gap = (since.offset.0 < oldest).then(|| Gap { missed: Some(oldest - since.offset.0) });
    let publications = (from + 1..=head.min(from + limit)).map(message).collect();
    Page { publications, from: cursor(from), head: cursor(head), gap }
}

#[derive(Debug, Clone)]
enum Happening {
    Publish,
    PublishLost,
    Trim,
    Head,
    Behind,
    PageRead,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        6 => Just(Happening::Publish),
        2 => Just(Happening::PublishLost),
        1 => Just(Happening::Trim),
        1 => Just(Happening::Head),
        1 => Just(Happening::Behind),
        3 => Just(Happening::PageRead),
    ];
    proptest::collection::vec(one, 0..200)
}

#[derive(Default)]
struct Model {
    head: u64,
    oldest: u64,
    seen: Vec<u64>,
    /// The last message that members have had, or were told is lost.
    reached: u64,
    reading: Option<Cursor>,
}

impl Model {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Deliver(p) => self.deliver(&p),
            Step::Nothing => {}
            Step::CatchUp(since) => self.catch_up(Some(since)),
        }
    }

    fn catch_up(&mut self, since: Option<Cursor>) {
        self.reading = since.or(self.reading);
    }

    fn deliver(&mut self, p: &Publication) {
        let offset = p.cursor.unwrap().offset.0;
        assert_eq!(offset, self.reached + 1, "a hole without a gap, or a repeat");
        self.reached = offset;
        self.seen.push(offset);
    }

    fn read(&mut self, feed: &mut Feed, limit: u64) {
        let Some(since) = self.reading.take() else { return };
        let filled = feed.on_page(page(since, self.oldest, self.head, limit));
        if let Some(gap) = filled.gap {
            assert_eq!(gap.start.offset.0, self.reached);
            self.reached = gap.end.offset.0;
        }
        filled.deliver.iter().for_each(|p| self.deliver(p));
        self.reading = filled.again;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn members_see_everything_once_in_order_or_are_told(events in happenings(), start in 0u64..3, limit in 1u64..5) {
        let mut model = Model { head: start, reached: start, ..Model::default() };
        let mut feed = Feed::new();
        model.catch_up(feed.on_subscribed(Some(cursor(start))));
        for event in events {
            match event {
                Happening::Publish => {
                    model.head += 1;
                    let step = feed.on_message(message(model.head));
                    model.apply(step);
                }
                Happening::PublishLost => model.head += 1,
                Happening::Trim => model.oldest = model.head.saturating_sub(2).max(model.oldest),
                Happening::Head => model.catch_up(feed.on_head(cursor(model.head))),
                Happening::Behind => model.catch_up(feed.on_behind()),
                Happening::PageRead => model.read(&mut feed, limit),
            }
        }
        model.catch_up(feed.on_head(cursor(model.head)));
        for _ in 0..1000 { model.read(&mut feed, limit); }
        prop_assert!(matches!(feed, Feed::Live(_)), "{feed:?}");
        prop_assert_eq!(model.reached, model.head);
    }
}

#[test]
fn a_message_that_comes_before_the_confirmation_is_read_from_history() {
    let mut feed = Feed::new();
    assert!(matches!(feed.on_message(message(6)), Step::Nothing));
    let since = feed.on_subscribed(Some(cursor(5))).unwrap();
    let filled = feed.on_page(page(since, 0, 6, 10));
    assert_eq!(filled.deliver.len(), 1);
    assert!(matches!(feed, Feed::Live(at) if at.cursor() == cursor(6)));
}

#[test]
fn held_messages_are_bounded_and_the_rest_is_read_again() {
    let mut feed = Feed::new();
    feed.on_subscribed(Some(cursor(0)));
    assert!(matches!(feed.on_message(message(2)), Step::CatchUp(_)));
    for offset in 3..5000 {
        feed.on_message(message(offset));
    }
    let filled = feed.on_page(page(cursor(0), 0, 1, 10));
    assert_eq!(filled.deliver.len(), 1 + HELD_MAX);
    assert_eq!(filled.again, Some(cursor(1 + HELD_MAX as u64)));
}
