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
    Confirm(Joined),
    /// After a reconnect: tell followers where the room stands, if it is not where they are.
    Check(Room, Retention),
    /// Everything from before the reconnect is back.
    Synced,
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
            None => Ask::Confirm(joined),
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
            in_flight.chain(queued).filter(|ask| matches!(ask, Ask::Head(..) | Ask::Confirm(_))).collect();
        self.rooms.retain(|_, entry| !entry.followers.is_empty());
        for entry in self.rooms.values_mut() {
            entry.subscribed = false;
            entry.queued = true;
            self.queue.push_back(Work::Change(entry.room.clone()));
            if let (Some(retention), Some(_)) = (entry.retention, entry.last) {
                self.queue.push_back(Work::Ask(Ask::Check(entry.room.clone(), retention)));
            }
        }
        self.queue.push_back(Work::Ask(Ask::Synced));
        self.queue.extend(joins.into_iter().map(Work::Ask));
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
                Ask::Confirm(joined) => drop(joined.send(Ok(None))),
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
    fn deliver(&self, event: &Event, subscribers: &[Arc<dyn Subscriber>]) {
        for who in &self.followers {
            if let Some(subscriber) = subscribers.get(usize::from(who.0)) {
                subscriber.deliver(Delivery { room: self.room.clone(), event: event.clone() });
            }
        }
    }
}

impl Ask {
    fn is_forsaken(&self) -> bool {
        match self {
            Self::Head(_, _, joined) | Self::Confirm(joined) => joined.is_closed(),
            Self::Check(..) | Self::Synced => false,
        }
    }
}
