//! A model test of `Interest`: rooms come and go, connections break, Redis replies in its own time. And tests of how
//! heads are compared, after a reconnect and by the sweep.

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

/// Completes the oldest batch in flight; Redis has taken all its rooms.
fn settle(
    interest: &mut Interest,
    heads: Vec<Result<Cursor, BrokerError>>,
    versions: Vec<u64>,
    subscribers: &[Arc<dyn Subscriber>],
) -> bool {
    interest.settle(BatchReplies { subscribed: Vec::new(), heads, versions }, subscribers)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Follow(u16, u8),
    Unfollow(u16, u8),
    Send,
    Reply,
    Compare,
    Reconnect,
    Refuse(u8),
    Permit(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..3, 0u8..4).prop_map(|(who, room)| Step::Follow(who, room)),
        4 => (0u16..3, 0u8..4).prop_map(|(who, room)| Step::Unfollow(who, room)),
        4 => Just(Step::Send),
        3 => Just(Step::Reply),
        1 => Just(Step::Compare),
        1 => Just(Step::Reconnect),
        1 => (0u8..4).prop_map(Step::Refuse),
        1 => (0u8..4).prop_map(Step::Permit),
    ]
}

/// Redis, as far as batches change it.
#[derive(Default)]
struct FakeRedis {
    subscribed: HashSet<Room>,
    /// What may not be subscribed.
    forbidden: HashSet<Room>,
    /// Rooms whose last SUBSCRIBE was refused.
    refused: HashSet<Room>,
    unanswered: VecDeque<Answer>,
    /// Rooms that are followed and were lost or refused, and were not compared since.
    uncertain: HashSet<Room>,
}

/// The replies to a batch, and what was subscribed when its heads were read.
struct Answer {
    replies: BatchReplies,
    subscribed: HashSet<Room>,
}

impl FakeRedis {
    fn take(&mut self, batch: SubscriptionBatch) -> Result<(), TestCaseError> {
        let mut subscribed = Vec::new();
        for room in batch.subscribe {
            let result = if self.forbidden.contains(&room) {
                self.refused.insert(room.clone());
                self.uncertain.insert(room.clone());
                Err(BrokerError::Misconfigured)
            } else {
                self.refused.remove(&room);
                prop_assert!(self.subscribed.insert(room.clone()), "subscribed twice");
                Ok(())
            };
            subscribed.push((room, result));
        }
        self.uncertain.retain(|room| !(self.subscribed.contains(room) && batch.versions.contains(room)));
        let (heads, versions) = (vec![Ok(cursor(7)); batch.heads.len()], vec![1; batch.versions.len()]);
        let replies = BatchReplies { subscribed, heads, versions };
        self.unanswered.push_back(Answer { replies, subscribed: self.subscribed.clone() });
        for room in &batch.unsubscribe {
            prop_assert!(
                self.subscribed.remove(room) || self.refused.remove(room),
                "unsubscribed without being subscribed, which some servers refuse"
            );
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// However fast rooms come and go, connections break and rights change: at the end exactly the followed rooms that
    /// Redis permits are subscribed, every join that is waited for has its reply, no join gets a head that was read while
    /// its room was not subscribed, and every room that lived through a reconnect or a refusal is compared after it.
    #[test]
    fn interest_and_subscriptions_end_up_equal(steps in proptest::collection::vec(step(), 0..300)) {
        let recorder = |_| Arc::new(Recorder::default()) as Arc<dyn Subscriber>;
        let seen: Vec<Arc<dyn Subscriber>> = (0..3).map(recorder).collect();
        let (mut interest, mut redis) = (Interest::default(), FakeRedis::default());
        let mut followed: HashSet<(u16, u8)> = HashSet::new();
        let mut joins = Vec::new();
        let mut connection = 1;
        interest.begin(connection);
        let drain = || std::iter::repeat_n([Step::Send, Step::Reply, Step::Compare], 400).flatten().map(Some);
        // `None`: nothing is under way any more.
        let forbidden = steps.into_iter().map(Some).chain(drain()).chain([None]);
        let permitted = (0..4).map(|room| Some(Step::Permit(room))).chain(drain()).chain([None]);
        for step in forbidden.chain(permitted) {
            match step {
                Some(Step::Follow(who, room)) => {
                    let (reply, result) = oneshot::channel();
                    followed.insert((who, room));
                    interest.follow(SubscriberId(who), &name(room), Some(KEEP), reply);
                    joins.push((Some((who, room)), result));
                }
                Some(Step::Unfollow(who, room)) => {
                    followed.remove(&(who, room));
                    // The reply to a join that was undone says nothing about a later join.
                    joins.iter_mut().filter(|(join, _)| *join == Some((who, room))).for_each(|(join, _)| *join = None);
                    interest.unfollow(SubscriberId(who), &name(room));
                    if !followed.iter().any(|(_, other)| *other == room) {
                        redis.uncertain.remove(&name(room));
                    }
                }
                Some(Step::Send) => if let Some(batch) = interest.batch() { redis.take(batch)? },
                Some(Step::Compare) => interest.step(ComparisonPace::new(1, Duration::from_secs(30))),
                Some(Step::Reply) => if let Some(answer) = redis.unanswered.pop_front() {
                    interest.settle(answer.replies, &seen);
                    for (join, result) in &mut joins {
                        if let (Ok(Ok(_)), Some((_, room))) = (result.try_recv(), join) {
                            let is_subscribed = answer.subscribed.contains(&name(*room));
                            prop_assert!(is_subscribed, "the head was read before the subscription");
                        }
                    }
                },
                Some(Step::Reconnect) => {
                    connection += 1;
                    let uncertain = followed.iter().map(|(_, room)| name(*room)).collect();
                    redis = FakeRedis { uncertain, forbidden: redis.forbidden, ..FakeRedis::default() };
                    interest.begin(connection);
                }
                Some(Step::Refuse(room)) => drop(redis.forbidden.insert(name(room))),
                Some(Step::Permit(room)) => drop(redis.forbidden.remove(&name(room))),
                None => {
                    let rooms: HashSet<Room> = followed.iter().map(|(_, room)| name(*room)).collect();
                    let missing: Vec<_> = rooms.difference(&redis.subscribed).collect();
                    prop_assert!(missing.iter().all(|room| redis.forbidden.contains(*room)), "missing: {missing:?}");
                    prop_assert!(redis.subscribed.is_subset(&rooms));
                    prop_assert_eq!(interest.rooms(), rooms.len());
                    for (_, result) in &mut joins {
                        let reply = result.try_recv().err();
                        prop_assert_ne!(reply, Some(oneshot::error::TryRecvError::Empty), "a join was forgotten");
                    }
                }
            }
        }
        prop_assert!(redis.uncertain.is_empty(), "not compared: {:?}", redis.uncertain);
        prop_assert!(interest.batch().is_none() && interest.in_flight.is_empty() && interest.refused.is_empty());
    }
}

/// Follows a room whose head is `at`.
fn follow_at(interest: &mut Interest, room: u8, at: u64, seen: &[Arc<dyn Subscriber>]) {
    let (reply, _result) = oneshot::channel();
    interest.follow(SubscriberId(0), &name(room), Some(KEEP), reply);
    interest.batch();
    settle(interest, vec![Ok(cursor(at))], Vec::new(), seen);
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
fn a_head_is_delivered_only_if_followers_have_not_got_everything_up_to_it() {
    let (recorder, seen) = recorder();
    let mut interest = Interest::default();
    interest.begin(1);
    follow_at(&mut interest, 1, 5, &seen);
    for (connection, (head, delivered)) in (2..).zip([(5, 0), (7, 1), (7, 1), (6, 1)]) {
        interest.begin(connection);
        assert_eq!(interest.batch().unwrap().subscribe.len(), 1);
        assert!(settle(&mut interest, Vec::new(), Vec::new(), &seen), "synced");
        interest.step(ComparisonPace::new(1, Duration::from_secs(30)));
        // Once because of the reconnect, and once more if a sweep begins.
        let compared = interest.batch().unwrap().heads.len();
        assert!((1..=2).contains(&compared), "{compared}");
        assert!(!settle(&mut interest, vec![Ok(cursor(head)); compared], Vec::new(), &seen));
        assert_eq!(recorder.now().heads(&name(1)).len(), delivered, "head {head}");
    }
}

/// A sweep of five steps: only rooms that were quiet since the last sweep are compared, and a lost message is found.
#[test]
fn the_sweep_compares_quiet_rooms_and_finds_a_lost_message() {
    let (recorder, seen) = recorder();
    let mut interest = Interest::default();
    interest.begin(1);
    (0..5).for_each(|room| follow_at(&mut interest, room, 5, &seen));
    let pace = ComparisonPace::new(1, STEP * 5);
    let sweep = |interest: &mut Interest, head: u64| {
        let mut compared = HashSet::new();
        for _ in 0..5 {
            interest.step(pace);
            let Some(batch) = interest.batch() else { continue };
            assert!(batch.heads.len() <= 1, "the rooms are spread over the steps");
            settle(interest, vec![Ok(cursor(head)); batch.heads.len()], Vec::new(), &seen);
            compared.extend(batch.heads.into_iter().map(|(room, _)| room));
        }
        compared
    };
    assert_eq!(sweep(&mut interest, 5).len(), 5);
    interest.deliver(1, name(3).as_str(), &message(6), &[]);
    let compared = sweep(&mut interest, 5);
    assert_eq!((compared.len(), compared.contains(&name(3))), (4, false));
    assert_eq!(recorder.now().heads(&name(2)).len(), 0);
    assert_eq!(sweep(&mut interest, 6).len(), 5);
    let recorded = recorder.now();
    assert_eq!((recorded.heads(&name(2)), recorded.heads(&name(3))), (vec![cursor(6)], vec![]));
}

#[test]
fn after_a_reconnect_heads_are_compared_no_faster_than_the_pace() {
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
    assert_eq!(heads(&mut interest), 0, "all rooms are subscribed before a head is read");
    let pace = ComparisonPace::new(2, Duration::from_secs(30));
    // Two connections: each has half of the node's pace, and has saved up nothing so far.
    let compared: Vec<usize> = (0..80)
        .map(|_| {
            interest.step(pace);
            heads(&mut interest)
        })
        .collect();
    assert!(compared.iter().all(|heads| *heads == HEADS_PER_SECOND / 20), "{compared:?}");
    assert!(interest.rooms.values().all(|room| !room.is_uncertain));
}

/// A member who left meanwhile stayed in the lists of this node's members until the room's next change.
#[test]
fn after_a_reconnect_followers_hear_of_the_version_of_presence() {
    let (recorder, seen) = recorder();
    let mut interest = Interest::default();
    interest.begin(1);
    interest.follow(SubscriberId(0), &name(1), None, oneshot::channel().0);
    interest.batch();
    settle(&mut interest, Vec::new(), Vec::new(), &seen);
    interest.begin(2);
    interest.batch();
    settle(&mut interest, Vec::new(), Vec::new(), &seen);
    interest.step(ComparisonPace::new(1, Duration::from_secs(30)));
    let batch = interest.batch().unwrap();
    assert_eq!((batch.heads.len(), batch.versions.len()), (0, 1), "a room without history has no head");
    settle(&mut interest, Vec::new(), vec![7], &seen);
    assert_eq!(recorder.now().presence_versions(&name(1)), [7]);
}

/// A reconnect put all rooms into the queue at once, under the lock that shards wait for: 100 ms for a million.
#[test]
fn a_reconnect_walked_the_whole_table_under_the_lock() {
    let mut interest = Interest::default();
    interest.begin(1);
    for n in 0..3 * BATCH {
        let room = Room::parse(&format!("r{n}")).unwrap();
        interest.follow(SubscriberId(0), &room, None, oneshot::channel().0);
    }
    while interest.batch().is_some() {
        settle(&mut interest, Vec::new(), Vec::new(), &[]);
    }
    interest.begin(2);
    assert!(interest.queue.is_empty());
    for _ in 0..3 {
        assert_eq!(interest.batch().unwrap().subscribe.len(), BATCH);
        assert!(interest.queue.is_empty());
    }
    interest.batch();
    let synced: Vec<bool> = (0..4).map(|_| settle(&mut interest, Vec::new(), Vec::new(), &[])).collect();
    assert_eq!(synced, [false, false, false, true]);
}

#[test]
fn rooms_move_with_their_followers_and_the_joins_in_flight() {
    let recorder = Arc::new(Recorder::default());
    let seen: Vec<Arc<dyn Subscriber>> = vec![Arc::clone(&recorder) as Arc<dyn Subscriber>];
    let (mut from, mut to) = (Interest::default(), Interest::default());
    for interest in [&mut from, &mut to] {
        interest.begin(1);
        interest.batch();
        assert!(settle(interest, Vec::new(), Vec::new(), &seen), "synced");
    }
    let (reply, _result) = oneshot::channel();
    from.follow(SubscriberId(0), &name(1), Some(KEEP), reply);
    from.batch();
    settle(&mut from, vec![Ok(cursor(5))], Vec::new(), &seen);
    let (reply, mut moved) = oneshot::channel();
    from.follow(SubscriberId(0), &name(2), Some(KEEP), reply);
    let (reply, mut stayed) = oneshot::channel();
    from.follow(SubscriberId(0), &name(3), Some(KEEP), reply);
    from.batch();

    // The sweep of `to` begins before it has the rooms.
    let pace = ComparisonPace::new(1, Duration::from_secs(30));
    to.step(pace);
    to.adopt(from.release(|room| *room != name(3)));
    settle(&mut from, vec![Ok(cursor(8)), Ok(cursor(9))], Vec::new(), &seen);
    assert_eq!(stayed.try_recv().unwrap(), Ok(Some(cursor(9))), "a join that stays gets the head of its own room");
    assert!(moved.try_recv().is_err() && from.rooms() == 1);
    let batch = to.batch().unwrap();
    assert_eq!((batch.subscribe.len(), batch.heads.len()), (2, 1));
    settle(&mut to, vec![Ok(cursor(3))], Vec::new(), &seen);
    assert_eq!(moved.try_recv().unwrap(), Ok(Some(cursor(3))));
    to.step(pace);
    let compared = to.batch().unwrap().heads;
    assert_eq!(compared.len(), 2, "the heads of moved rooms are compared");
    let heads = compared.iter().map(|(room, _)| Ok(cursor(if *room == name(1) { 7 } else { 3 }))).collect();
    settle(&mut to, heads, Vec::new(), &seen);
    assert_eq!(recorder.now().heads(&name(1)), [cursor(7)]);
}
