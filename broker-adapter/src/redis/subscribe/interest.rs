//! What one lane of this node follows, and what its connection is to be asked next. Pure: no I/O, no clock.
//!
//! Subscribing and unsubscribing a room, and reading its head, are items of one queue. The lane takes them in batches
//! and sends each batch over one connection, in order; Redis answers in order. So an answered head proves that the
//! SUBSCRIBE before it is in force, and however fast a room comes and goes, the last word is the last one sent.

use crate::{BrokerError, Cursor, Delivery, Retention, Room, RoomEvent, Subscriber, SubscriberId};
use std::{
    collections::{HashMap, VecDeque},
    mem::take,
    sync::Arc,
    time::Duration,
};
use tokio::sync::oneshot;

/// Rooms in one SUBSCRIBE: larger ones keep Redis away from others for milliseconds.
pub(crate) const BATCH: usize = 512;

/// How often [`Interest::step`] is called.
pub(crate) const STEP: Duration = Duration::from_millis(100);
/// Heads that a node compares in a second, at most. A head costs Redis 10 µs (measured on two busy cores), and a room
/// that is not where it was a page of history on top, some 50 µs. So each node that comes back takes a twentieth of
/// Redis's core, a third if it has to read in every room, and a few of them at once do not knock it over. 10,000 rooms
/// are compared in a second (one second's worth is saved up), 150,000 in a sweep of 30 s.
const HEADS_PER_SECOND: usize = 5_000;
/// Steps' worth of unused heads that are saved up for the next reconnect: a second.
const SAVED_STEPS: usize = 10;

/// How fast one lane compares heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Heads in a step.
    heads: usize,
    /// Steps over which a sweep of all rooms is spread.
    steps: usize,
}

impl Pace {
    /// The node's pace, shared by its lanes. A sweep looks at every room once in `sweep`.
    pub(crate) fn new(lanes: usize, sweep: Duration) -> Self {
        let per_step = HEADS_PER_SECOND * STEP.as_millis() as usize / 1000;
        let steps = (sweep.as_millis() / STEP.as_millis()) as usize;
        Self { heads: (per_step / lanes.max(1)).max(1), steps: steps.max(1) }
    }
}

/// Answers a join with the room's head, `None` in a room without history.
pub(crate) type Joined = oneshot::Sender<Result<Option<Cursor>, BrokerError>>;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Interest {
    rooms: HashMap<Room, Entry>,
    queue: VecDeque<Work>,
    in_flight: VecDeque<Vec<Ask>>,
    /// The number of the connection that counts; what others deliver is too late.
    connection: u64,
    /// Rooms that a reconnect left unsure of where they stand.
    unsure: VecDeque<Room>,
    /// Rooms that the sweep has still to look at.
    sweep: VecDeque<Room>,
    /// How many of them in a step, and steps until the next sweep may begin.
    share: usize,
    steps_left: usize,
    /// Heads that may be asked for now.
    credit: usize,
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
    /// A numbered message came since the sweep last looked: the next one would show a hole by itself.
    heard: bool,
}

enum Work {
    /// Subscribe or unsubscribe, whichever is due when its turn comes.
    Change(Room),
    Ask(Ask),
}

/// What is settled when the batch is answered.
pub(crate) enum Ask {
    /// Answer a join in a room with history, or whoever else needs a head.
    Head(Room, Retention, Joined),
    /// Answer a join in a room without history.
    Confirm(Room, Joined),
    /// Tell followers where the room stands, if it is not where they are.
    Check(Room, Retention),
    /// Every room from before the reconnect is subscribed again.
    Synced,
}

/// Rooms on their way from one lane to another, with those who follow them and those who wait for an answer.
#[derive(Default)]
pub(crate) struct Moving {
    entries: Vec<Entry>,
    joins: Vec<Ask>,
}

/// What to send at once: SUBSCRIBE, then heads, then UNSUBSCRIBE.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    pub(crate) subscribe: Vec<Room>,
    pub(crate) heads: Vec<(Room, Retention)>,
    pub(crate) unsubscribe: Vec<Room>,
}

impl Interest {
    pub(crate) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub(crate) fn follow(&mut self, who: SubscriberId, room: &Room, retention: Option<Retention>, joined: Joined) {
        let entry = self.rooms.entry(room.clone()).or_insert_with(|| Entry {
            room: room.clone(),
            followers: Vec::new(),
            retention,
            subscribed: false,
            queued: false,
            last: None,
            heard: false,
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
    pub(crate) fn head(&mut self, room: &Room, retention: Retention, answer: Joined) {
        self.ask(Ask::Head(room.clone(), retention, answer));
    }

    fn ask(&mut self, ask: Ask) {
        // Without a connection joins that nobody waits for any more must not pile up.
        if self.queue.len() >= 1024 && self.queue.len() >= 4 * self.rooms.len() {
            self.queue.retain(|work| !matches!(work, Work::Ask(ask) if ask.is_forsaken()));
        }
        self.queue.push_back(Work::Ask(ask));
    }

    pub(crate) fn unfollow(&mut self, who: SubscriberId, room: &Room) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        entry.followers.retain(|follower| *follower != who);
        if entry.followers.is_empty() && !entry.queued {
            entry.queued = true;
            self.queue.push_back(Work::Change(room.clone()));
        }
    }

    /// A new connection: everything that is followed is to be subscribed again, and joins that were under way too.
    pub(crate) fn begin(&mut self, connection: u64) {
        self.connection = connection;
        let in_flight = take(&mut self.in_flight).into_iter().flatten();
        let queued = take(&mut self.queue).into_iter().filter_map(|work| match work {
            Work::Ask(ask) => Some(ask),
            Work::Change(_) => None,
        });
        let joins: Vec<Ask> =
            in_flight.chain(queued).filter(|ask| matches!(ask, Ask::Head(..) | Ask::Confirm(..))).collect();
        self.rooms.retain(|_, entry| !entry.followers.is_empty());
        self.unsure.clear();
        self.sweep.clear();
        for entry in self.rooms.values_mut() {
            entry.subscribed = false;
            entry.queued = true;
            self.queue.push_back(Work::Change(entry.room.clone()));
            if entry.last.is_some() {
                self.unsure.push_back(entry.room.clone());
            }
        }
        self.queue.push_back(Work::Ask(Ask::Synced));
        self.queue.extend(joins.into_iter().map(Work::Ask));
    }

    /// Asks for as many heads as the pace allows: of rooms that a reconnect left unsure, then of rooms that have been
    /// quiet since the last sweep. A message that was lost in silence is found in the second sweep after it at the
    /// latest, and asking renews the time for which Redis remembers a room.
    pub(crate) fn step(&mut self, pace: Pace) {
        self.credit = (self.credit + pace.heads).min(pace.heads * SAVED_STEPS);
        self.steps_left = self.steps_left.saturating_sub(1);
        let unsure = self.unsure.len().min(self.credit);
        self.credit -= unsure;
        for room in self.unsure.drain(..unsure) {
            self.queue.extend(self.rooms.get(&room).and_then(Entry::check));
        }
        if self.steps_left == 0 && self.sweep.is_empty() {
            self.sweep.extend(self.rooms.keys().cloned());
            (self.share, self.steps_left) = (self.sweep.len().div_ceil(pace.steps), pace.steps);
        }
        let share = self.share.min(self.credit).min(self.sweep.len());
        self.credit -= share;
        for room in self.sweep.drain(..share) {
            let Some(entry) = self.rooms.get_mut(&room) else { continue };
            if !take(&mut entry.heard) {
                self.queue.extend(entry.check());
            }
        }
    }

    /// Forgets these rooms; what Redis still sends of them is dropped.
    pub(crate) fn give_up(&mut self, these: impl Fn(&Room) -> bool) -> Moving {
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
    pub(crate) fn adopt(&mut self, moving: Moving) {
        for entry in moving.entries.into_iter().filter(|entry| !entry.followers.is_empty()) {
            self.queue.push_back(Work::Change(entry.room.clone()));
            if entry.last.is_some() {
                self.unsure.push_back(entry.room.clone());
            }
            self.rooms.insert(entry.room.clone(), Entry { subscribed: false, queued: true, ..entry });
        }
        self.queue.extend(moving.joins.into_iter().map(Work::Ask));
    }

    /// What is due now; `None` if nothing is. What it asks for is in flight until [`Interest::settle`].
    pub(crate) fn batch(&mut self) -> Option<Batch> {
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

    /// The oldest batch in flight is answered, with these heads. Says whether it was the last one of a
    /// reconnect.
    pub(crate) fn settle(
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
        entry.deliver(&RoomEvent::Head(head), subscribers);
    }

    /// Hands an event that came over `connection` to the room's followers.
    pub(crate) fn deliver(
        &mut self,
        connection: u64,
        room: &str,
        event: &RoomEvent,
        subscribers: &[Arc<dyn Subscriber>],
    ) {
        if connection != self.connection {
            return;
        }
        let Some(entry) = self.rooms.get_mut(room) else { return };
        if let RoomEvent::Message(publication) = event {
            entry.last = publication.cursor.or(entry.last);
            entry.heard = publication.cursor.is_some();
        }
        entry.deliver(event, subscribers);
    }
}

impl Entry {
    fn check(&self) -> Option<Work> {
        self.last.and(self.retention).map(|retention| Work::Ask(Ask::Check(self.room.clone(), retention)))
    }

    fn deliver(&self, event: &RoomEvent, subscribers: &[Arc<dyn Subscriber>]) {
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
#[path = "interest_tests.rs"]
mod tests;
