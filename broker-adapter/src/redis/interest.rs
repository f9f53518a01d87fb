//! What one lane of this node follows, and what its connection is to be asked next. Pure: no I/O, no clock.
//!
//! Subscribing and unsubscribing a room, and reading its head, are items of one queue. The lane takes them in batches
//! and sends each batch over one connection, in order; Redis answers in order. So an answered head proves that the
//! SUBSCRIBE before it is in force, and however fast a room comes and goes, the last word is the last one sent.

use crate::{BrokerError, Cursor, Delivery, Event, Retention, Room, Subscriber, SubscriberId};
use std::{
    collections::{HashMap, VecDeque},
    mem::take,
    sync::Arc,
};
use tokio::sync::oneshot;

/// Rooms in one SUBSCRIBE: larger ones keep Redis away from others for milliseconds.
pub(super) const BATCH: usize = 512;

/// Answers a join with the room's head, `None` in a room without history.
pub(super) type Joined = oneshot::Sender<Result<Option<Cursor>, BrokerError>>;

/// See the module's head.
#[derive(Default)]
pub(super) struct Interest {
    rooms: HashMap<Room, Entry>,
    queue: VecDeque<Work>,
    in_flight: VecDeque<Vec<Ask>>,
    /// The number of the connection that counts; what others deliver is too late.
    connection: u64,
}

struct Entry {
    room: Room,
    followers: Vec<SubscriberId>,
    retention: Option<Retention>,
    /// The last command sent for it on this connection was SUBSCRIBE.
    subscribed: bool,
    /// A [`Work::Change`] is in the queue.
    queued: bool,
    /// The last place that followers were told, by a message or a head.
    last: Option<Cursor>,
}

enum Work {
    /// Subscribe or unsubscribe, whichever is due when its turn comes.
    Change(Room),
    Ask(Ask),
}

/// What is settled when the batch is answered.
pub(super) enum Ask {
    /// Answer a join in a room with history, or whoever else needs a head.
    Head(Room, Retention, Joined),
    /// Answer a join in a room without history.
    Confirm(Room, Joined),
    /// After a reconnect: tell followers where the room stands, if it is not where they are.
    Check(Room, Retention),
    /// Everything from before the reconnect is back.
    Synced,
}

/// Rooms on their way from one lane to another, with those who follow them and those who wait for an answer.
#[derive(Default)]
pub(super) struct Moving {
    entries: Vec<Entry>,
    joins: Vec<Ask>,
}

/// What to send at once: SUBSCRIBE, then heads, then UNSUBSCRIBE.
#[derive(Default, Debug)]
pub(super) struct Batch {
    pub(super) subscribe: Vec<Room>,
    pub(super) heads: Vec<(Room, Retention)>,
    pub(super) unsubscribe: Vec<Room>,
}

impl Interest {
    pub(super) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn follow(&mut self, who: SubscriberId, room: &Room, retention: Option<Retention>, joined: Joined) {
        let entry = self.rooms.entry(room.clone()).or_insert_with(|| Entry {
            room: room.clone(),
            followers: Vec::new(),
            retention,
            subscribed: false,
            queued: false,
            last: None,
        });
        entry.retention = retention.or(entry.retention);
        if !entry.followers.contains(&who) {
            entry.followers.reserve_exact(1);
            entry.followers.push(who);
        }
        if !entry.subscribed && !entry.queued {
            entry.queued = true;
            self.queue.push_back(Work::Change(room.clone()));
        }
        self.ask(match retention {
            Some(retention) => Ask::Head(room.clone(), retention, joined),
            None => Ask::Confirm(room.clone(), joined),
        });
    }

    /// Asks for a head without following the room.
    pub(super) fn head(&mut self, room: &Room, retention: Retention, answer: Joined) {
        self.ask(Ask::Head(room.clone(), retention, answer));
    }

    fn ask(&mut self, ask: Ask) {
        // Without a connection joins that nobody waits for any more must not pile up.
        if self.queue.len() >= 1024 && self.queue.len() >= 4 * self.rooms.len() {
            self.queue.retain(|work| !matches!(work, Work::Ask(ask) if ask.is_forsaken()));
        }
        self.queue.push_back(Work::Ask(ask));
    }

    pub(super) fn unfollow(&mut self, who: SubscriberId, room: &Room) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        entry.followers.retain(|follower| *follower != who);
        if entry.followers.is_empty() && !entry.queued {
            entry.queued = true;
            self.queue.push_back(Work::Change(room.clone()));
        }
    }

    /// A new connection: everything that is followed is to be subscribed again, and joins that were under way too.
    pub(super) fn begin(&mut self, connection: u64) {
        self.connection = connection;
        let in_flight = take(&mut self.in_flight).into_iter().flatten();
        let queued = take(&mut self.queue).into_iter().filter_map(|work| match work {
            Work::Ask(ask) => Some(ask),
            Work::Change(_) => None,
        });
        let joins: Vec<Ask> =
            in_flight.chain(queued).filter(|ask| matches!(ask, Ask::Head(..) | Ask::Confirm(..))).collect();
        self.rooms.retain(|_, entry| !entry.followers.is_empty());
        for entry in self.rooms.values_mut() {
            entry.subscribed = false;
            entry.queued = true;
            self.queue.push_back(Work::Change(entry.room.clone()));
            self.queue.extend(entry.check());
        }
        self.queue.push_back(Work::Ask(Ask::Synced));
        self.queue.extend(joins.into_iter().map(Work::Ask));
    }

    /// Forgets these rooms; what Redis still sends of them is dropped.
    pub(super) fn give_up(&mut self, these: impl Fn(&Room) -> bool) -> Moving {
        let entries = self.rooms.extract_if(|room, _| these(room)).map(|(_, entry)| entry).collect();
        let queued = self.queue.iter_mut().filter_map(|work| match work {
            Work::Ask(ask) => Some(ask),
            Work::Change(_) => None,
        });
        // Answers that are under way still count for the places of the others.
        let joins = self.in_flight.iter_mut().flatten().chain(queued).filter_map(|ask| ask.give_up(&these)).collect();
        Moving { entries, joins }
    }

    /// Goes on with rooms that another lane has given up: nobody there hears them any more, so all is compared.
    pub(super) fn adopt(&mut self, moving: Moving) {
        for entry in moving.entries.into_iter().filter(|entry| !entry.followers.is_empty()) {
            self.queue.push_back(Work::Change(entry.room.clone()));
            self.queue.extend(entry.check());
            self.rooms.insert(entry.room.clone(), Entry { subscribed: false, queued: true, ..entry });
        }
        self.queue.extend(moving.joins.into_iter().map(Work::Ask));
    }

    /// Compares every room's head.
    pub(super) fn refresh(&mut self) {
        self.queue.extend(self.rooms.values().filter_map(Entry::check));
    }

    /// What is due now; `None` if nothing is. What it asks for is in flight until [`Interest::settle`].
    pub(super) fn batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut asks = Vec::new();
        for work in self.queue.drain(..self.queue.len().min(BATCH)) {
            match work {
                Work::Ask(ask) if ask.is_forsaken() => {}
                Work::Ask(ask) => {
                    if let Ask::Head(room, retention, _) | Ask::Check(room, retention) = &ask {
                        batch.heads.push((room.clone(), *retention));
                    }
                    asks.push(ask);
                }
                Work::Change(room) => {
                    let Some(entry) = self.rooms.get_mut(&room) else { continue };
                    entry.queued = false;
                    match (entry.followers.is_empty(), entry.subscribed) {
                        (false, false) => {
                            entry.subscribed = true;
                            batch.subscribe.push(room);
                        }
                        (true, subscribed) => {
                            self.rooms.remove(&room);
                            if subscribed {
                                batch.unsubscribe.push(room);
                            }
                        }
                        (false, true) => {}
                    }
                }
            }
        }
        let empty = asks.is_empty() && batch.subscribe.is_empty() && batch.unsubscribe.is_empty();
        if empty && self.queue.is_empty() {
            return None;
        }
        self.in_flight.push_back(asks);
        Some(batch)
    }

    /// The oldest batch in flight is answered, with these heads. Says whether it was the one that makes up for a
    /// reconnect.
    pub(super) fn settle(
        &mut self,
        heads: Vec<Result<Cursor, BrokerError>>,
        subscribers: &[Arc<dyn Subscriber>],
    ) -> bool {
        let mut heads = heads.into_iter();
        let mut synced = false;
        for ask in self.in_flight.pop_front().unwrap_or_default() {
            match ask {
                Ask::Head(room, _, joined) => {
                    let Some(head) = heads.next() else { continue };
                    if let (Ok(head), Some(entry)) = (&head, self.rooms.get_mut(&room)) {
                        entry.last = entry.last.or(Some(*head));
                    }
                    // Whoever joined may have left.
                    let _ = joined.send(head.map(Some));
                }
                Ask::Confirm(_, joined) => drop(joined.send(Ok(None))),
                Ask::Check(room, _) => {
                    if let Some(Ok(head)) = heads.next() {
                        self.check(&room, head, subscribers);
                    }
                }
                Ask::Synced => synced = true,
            }
        }
        synced
    }

    /// Messages up to `head` came before it on the same connection, so what is not behind `last` was lost.
    fn check(&mut self, room: &Room, head: Cursor, subscribers: &[Arc<dyn Subscriber>]) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        // Without a last place nobody has been told one: their join is still to be answered.
        let Some(last) = entry.last else { return };
        if last.epoch == head.epoch && last.offset >= head.offset {
            return;
        }
        entry.last = Some(head);
        entry.deliver(&Event::Head(head), subscribers);
    }

    /// Hands an event that came over `connection` to the room's followers.
    pub(super) fn deliver(&mut self, connection: u64, room: &str, event: &Event, subscribers: &[Arc<dyn Subscriber>]) {
        if connection != self.connection {
            return;
        }
        let Some(entry) = self.rooms.get_mut(room) else { return };
        if let Event::Message(publication) = event {
            entry.last = publication.cursor.or(entry.last);
        }
        entry.deliver(event, subscribers);
    }
}

impl Entry {
    fn check(&self) -> Option<Work> {
        self.last.and(self.retention).map(|retention| Work::Ask(Ask::Check(self.room.clone(), retention)))
    }

    fn deliver(&self, event: &Event, subscribers: &[Arc<dyn Subscriber>]) {
        for who in &self.followers {
            if let Some(subscriber) = subscribers.get(usize::from(who.0)) {
                subscriber.deliver(Delivery { room: self.room.clone(), event: event.clone() });
            }
        }
    }
}

impl Ask {
    /// Takes a join out and leaves one for which nobody waits.
    fn give_up(&mut self, these: impl Fn(&Room) -> bool) -> Option<Self> {
        let (room, joined) = match self {
            Self::Head(room, _, joined) | Self::Confirm(room, joined) if these(room) => (room.clone(), joined),
            _ => return None,
        };
        let joined = std::mem::replace(joined, oneshot::channel().0);
        Some(match self {
            Self::Head(_, retention, _) => Self::Head(room, *retention, joined),
            _ => Self::Confirm(room, joined),
        })
    }

    fn is_forsaken(&self) -> bool {
        match self {
            Self::Head(_, _, joined) | Self::Confirm(_, joined) => joined.is_closed(),
            Self::Check(..) | Self::Synced => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Offset, contract::Recorder};
    use proptest::prelude::*;
    use std::{collections::HashSet, time::Duration};

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

    #[test]
    fn a_head_is_told_only_to_those_who_are_not_there() {
        let recorder = Arc::new(Recorder::default());
        let seen: Vec<Arc<dyn Subscriber>> = vec![recorder.clone()];
        let mut interest = Interest::default();
        interest.begin(1);
        let (joined, _heard) = oneshot::channel();
        interest.follow(SubscriberId(0), &name(1), Some(KEEP), joined);
        interest.batch();
        interest.settle(vec![Ok(cursor(5))], &seen);
        for (head, told) in [(5, 0), (7, 1), (7, 1), (6, 1)] {
            interest.begin(2);
            let batch = interest.batch().unwrap();
            assert_eq!((batch.subscribe.len(), batch.heads.len()), (1, 1));
            assert!(interest.settle(vec![Ok(cursor(head))], &seen), "synced");
            assert_eq!(recorder.now().heads(&name(1)).len(), told, "head {head}");
        }
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

        to.adopt(from.give_up(|room| *room != name(3)));
        from.settle(vec![Ok(cursor(8)), Ok(cursor(9))], &seen);
        assert_eq!(stays.try_recv().unwrap(), Ok(Some(cursor(9))), "the others' answers are their own");
        assert!(waits.try_recv().is_err() && from.rooms() == 1);
        let batch = to.batch().unwrap();
        assert_eq!((batch.subscribe.len(), batch.heads.len()), (2, 2));
        to.settle(vec![Ok(cursor(7)), Ok(cursor(3))], &seen);
        assert_eq!(recorder.now().heads(&name(1)), [cursor(7)]);
        assert_eq!(waits.try_recv().unwrap(), Ok(Some(cursor(3))));
    }
}
