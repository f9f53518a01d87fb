//! A model test of `Interest`: rooms come and go, connections break, Redis answers in its own time; and how heads are
//! compared, after a reconnect and by the sweep.

use super::*;
use crate::{Epoch, Offset, contract::Recorder};
use proptest::prelude::*;
use std::collections::HashSet;

const KEEP: Retention = Retention { messages: 10, ttl: Duration::from_secs(60) };

fn name(n: u8) -> Room {
    Room::parse(&format!("r{n}")).unwrap()
}

fn cursor(offset: u64) -> Cursor {
    Cursor::new(Epoch::from_bytes(*b"aaaaaaaa").unwrap(), Offset(offset))
}

#[derive(Debug, Clone, Copy)]
enum Happens {
    Follow(u16, u8),
    Unfollow(u16, u8),
    Send,
    Answer,
    Reconnect,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0u16..3, 0u8..4).prop_map(|(who, room)| Happens::Follow(who, room)),
        4 => (0u16..3, 0u8..4).prop_map(|(who, room)| Happens::Unfollow(who, room)),
        4 => Just(Happens::Send),
        3 => Just(Happens::Answer),
        1 => Just(Happens::Reconnect),
    ]
}

/// What Redis makes of the batches.
#[derive(Default)]
struct Backplane {
    subscribed: HashSet<Room>,
    unanswered: VecDeque<usize>,
}

impl Backplane {
    fn take(&mut self, batch: Batch) -> Result<(), TestCaseError> {
        for room in batch.subscribe {
            prop_assert!(self.subscribed.insert(room), "subscribed twice");
        }
        for room in batch.unsubscribe {
            prop_assert!(self.subscribed.remove(&room), "some servers refuse what was not subscribed");
        }
        self.unanswered.push_back(batch.heads.len());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// However fast rooms come and go and connections break: at the end Redis sends what is followed and no
    /// more, every join that somebody waits for is answered, and none before its room was subscribed.
    #[test]
    fn interest_and_subscriptions_end_up_equal(events in proptest::collection::vec(happens(), 0..300)) {
        let seen: Vec<Arc<dyn Subscriber>> = (0..3).map(|_| Arc::new(Recorder::default()) as Arc<dyn Subscriber>).collect();
        let (mut interest, mut backplane) = (Interest::default(), Backplane::default());
        let mut followed: HashSet<(u16, u8)> = HashSet::new();
        let mut joins = Vec::new();
        let mut connection = 1;
        interest.begin(connection);
        let drain = std::iter::repeat_n([Happens::Send, Happens::Answer], 400).flatten();
        for event in events.into_iter().chain(drain) {
            match event {
                Happens::Follow(who, room) => {
                    let (joined, heard) = oneshot::channel();
                    followed.insert((who, room));
                    interest.follow(SubscriberId(who), &name(room), Some(KEEP), joined);
                    joins.push((Some((who, room)), heard));
                }
                Happens::Unfollow(who, room) => {
                    followed.remove(&(who, room));
                    // The answer to a join that was undone says nothing about a later one.
                    joins.iter_mut().filter(|(join, _)| *join == Some((who, room))).for_each(|(join, _)| *join = None);
                    interest.unfollow(SubscriberId(who), &name(room));
                }
                Happens::Send => if let Some(batch) = interest.batch() { backplane.take(batch)? },
                Happens::Answer => if let Some(heads) = backplane.unanswered.pop_front() {
                    interest.settle(vec![Ok(cursor(7)); heads], &seen);
                    for (join, heard) in &mut joins {
                        if let (Ok(_), Some((_, room))) = (heard.try_recv(), join) {
                            prop_assert!(backplane.subscribed.contains(&name(*room)), "answered too early");
                        }
                    }
                },
                Happens::Reconnect => {
                    connection += 1;
                    backplane = Backplane::default();
                    interest.begin(connection);
                }
            }
        }
        let rooms: HashSet<Room> = followed.iter().map(|(_, room)| name(*room)).collect();
        prop_assert_eq!(&backplane.subscribed, &rooms);
        prop_assert_eq!(interest.rooms(), rooms.len());
        prop_assert!(interest.batch().is_none() && interest.in_flight.is_empty());
        for (_, heard) in &mut joins {
            prop_assert_ne!(heard.try_recv().err(), Some(oneshot::error::TryRecvError::Empty), "a join was forgotten");
        }
    }
}

/// A room followed at `at`, its join answered.
fn followed(interest: &mut Interest, room: u8, at: u64, seen: &[Arc<dyn Subscriber>]) {
    let (joined, _heard) = oneshot::channel();
    interest.follow(SubscriberId(0), &name(room), Some(KEEP), joined);
    interest.batch();
    interest.settle(vec![Ok(cursor(at))], seen);
}

fn recorder() -> (Arc<Recorder>, Vec<Arc<dyn Subscriber>>) {
    let recorder = Arc::new(Recorder::default());
    (recorder.clone(), vec![recorder])
}

fn message(offset: u64) -> RoomEvent {
    RoomEvent::Message(crate::Publication {
        cursor: Some(cursor(offset)),
        id: crate::MessageId { node: crate::NodeId(1), number: offset },
        author: None,
        ts_ms: 0,
        payload: bytes::Bytes::new(),
    })
}

#[test]
fn a_head_is_told_only_to_those_who_are_not_there() {
    let (recorder, seen) = recorder();
    let mut interest = Interest::default();
    interest.begin(1);
    followed(&mut interest, 1, 5, &seen);
    for (head, told) in [(5, 0), (7, 1), (7, 1), (6, 1)] {
        interest.begin(2);
        assert_eq!(interest.batch().unwrap().subscribe.len(), 1);
        assert!(interest.settle(Vec::new(), &seen), "synced");
        interest.step(Pace::new(1, Duration::from_secs(30)));
        // Once because of the reconnect, and once more if a sweep begins.
        let asked = interest.batch().unwrap().heads.len();
        assert!((1..=2).contains(&asked), "{asked}");
        assert!(!interest.settle(vec![Ok(cursor(head)); asked], &seen));
        assert_eq!(recorder.now().heads(&name(1)).len(), told, "head {head}");
    }
}

/// A sweep of five steps: only what was quiet since the last one is asked for, and a lost message is found.
#[test]
fn the_sweep_asks_for_quiet_rooms_and_finds_what_was_lost() {
    let (recorder, seen) = recorder();
    let mut interest = Interest::default();
    interest.begin(1);
    (0..5).for_each(|room| followed(&mut interest, room, 5, &seen));
    let pace = Pace::new(1, STEP * 5);
    let sweep = |interest: &mut Interest, head: u64| {
        let mut asked = HashSet::new();
        for _ in 0..5 {
            interest.step(pace);
            let Some(batch) = interest.batch() else { continue };
            assert!(batch.heads.len() <= 1, "spread");
            interest.settle(vec![Ok(cursor(head)); batch.heads.len()], &seen);
            asked.extend(batch.heads.into_iter().map(|(room, _)| room));
        }
        asked
    };
    assert_eq!(sweep(&mut interest, 5).len(), 5);
    interest.deliver(1, name(3).as_str(), &message(6), &[]);
    let asked = sweep(&mut interest, 5);
    assert_eq!((asked.len(), asked.contains(&name(3))), (4, false));
    assert_eq!(recorder.now().heads(&name(2)).len(), 0);
    assert_eq!(sweep(&mut interest, 6).len(), 5);
    let told = recorder.now();
    assert_eq!((told.heads(&name(2)), told.heads(&name(3))), (vec![cursor(6)], vec![]));
}

#[test]
fn after_a_reconnect_heads_are_asked_for_no_faster_than_the_pace() {
    const ROOMS: usize = 20_000;
    let mut interest = Interest::default();
    interest.begin(1);
    for n in 0..ROOMS {
        let room = Room::parse(&format!("r{n}")).unwrap();
        interest.follow(SubscriberId(0), &room, Some(KEEP), oneshot::channel().0);
        interest.rooms.get_mut(&room).unwrap().last = Some(cursor(1));
    }
    let heads = |interest: &mut Interest| std::iter::from_fn(|| interest.batch()).map(|b| b.heads.len()).sum::<usize>();
    heads(&mut interest);
    interest.begin(2);
    assert_eq!(heads(&mut interest), 0, "subscribing waits for no head");
    let pace = Pace::new(2, Duration::from_secs(30));
    // Two lanes: each has half of the node's pace, and nothing saved up yet.
    let asked: Vec<usize> = (0..80)
        .map(|_| {
            interest.step(pace);
            heads(&mut interest)
        })
        .collect();
    assert!(asked.iter().all(|heads| *heads == HEADS_PER_SECOND / 20), "{asked:?}");
    assert!(interest.unsure.is_empty());
}

#[test]
fn rooms_move_with_their_followers_and_the_joins_under_way() {
    let recorder = Arc::new(Recorder::default());
    let seen: Vec<Arc<dyn Subscriber>> = vec![Arc::clone(&recorder) as Arc<dyn Subscriber>];
    let (mut from, mut to) = (Interest::default(), Interest::default());
    for interest in [&mut from, &mut to] {
        interest.begin(1);
        interest.batch();
        assert!(interest.settle(Vec::new(), &seen), "synced");
    }
    let (joined, _heard) = oneshot::channel();
    from.follow(SubscriberId(0), &name(1), Some(KEEP), joined);
    from.batch();
    from.settle(vec![Ok(cursor(5))], &seen);
    let (joined, mut waits) = oneshot::channel();
    from.follow(SubscriberId(0), &name(2), Some(KEEP), joined);
    let (joined, mut stays) = oneshot::channel();
    from.follow(SubscriberId(0), &name(3), Some(KEEP), joined);
    from.batch();

    // The sweep begins without them.
    let pace = Pace::new(1, Duration::from_secs(30));
    to.step(pace);
    to.adopt(from.give_up(|room| *room != name(3)));
    from.settle(vec![Ok(cursor(8)), Ok(cursor(9))], &seen);
    assert_eq!(stays.try_recv().unwrap(), Ok(Some(cursor(9))), "the others' answers are their own");
    assert!(waits.try_recv().is_err() && from.rooms() == 1);
    let batch = to.batch().unwrap();
    assert_eq!((batch.subscribe.len(), batch.heads.len()), (2, 1));
    to.settle(vec![Ok(cursor(3))], &seen);
    assert_eq!(waits.try_recv().unwrap(), Ok(Some(cursor(3))));
    to.step(pace);
    assert_eq!(to.batch().unwrap().heads.len(), 1, "then all is compared");
    to.settle(vec![Ok(cursor(7))], &seen);
    assert_eq!(recorder.now().heads(&name(1)), [cursor(7)]);
}
