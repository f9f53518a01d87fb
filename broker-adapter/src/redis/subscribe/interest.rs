//! `Interest`: which rooms one subscriber connection follows, and what is to be sent over it next. Pure: no I/O, no
//! clock.
//!
//! Changes of rooms and reads of heads wait in one queue. The driver takes them in batches. A batch is sent over one
//! connection as SUBSCRIBE, heads, UNSUBSCRIBE, and Redis replies in that order. So a reply with a head proves that the
//! room is subscribed. A room has at most one change in the queue, and what it is, SUBSCRIBE or UNSUBSCRIBE, is decided
//! when it is taken.

use crate::{BrokerError, Cursor, Delivery, Retention, Room, RoomEvent, Subscriber, SubscriberId};
use std::{
    collections::{HashMap, VecDeque},
    mem::{replace, take},
    sync::Arc,
    time::Duration,
};
use tokio::sync::oneshot;

/// At most this many items in a batch: a SUBSCRIBE of more rooms would block Redis for milliseconds.
pub(crate) const BATCH: usize = 512;

/// The interval in which [`Interest::step`] is called.
pub(crate) const STEP: Duration = Duration::from_millis(100);
/// How many heads a node compares per second. A head costs Redis 10 µs (measured on two busy cores), so 5,000 use 5 %
/// of its core. If every room has changed, each also needs a page of history (50 µs): 30 %. Several nodes can therefore
/// reconnect at once. 10,000 rooms are compared in the first second after a reconnect, since the unused heads of one
/// second are saved up, and 150,000 in a sweep of 30 s.
const HEADS_PER_SECOND: usize = 5_000;
/// Unused heads are saved up for the next reconnect, for at most this many steps (1 s).
const SAVED_STEPS: usize = 10;
/// Up to this length the queue is not searched for cancelled replies.
const QUEUE_MIN: usize = 1024;

/// How fast one connection compares heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComparisonPace {
    /// Heads in one step.
    heads: usize,
    /// Steps over which a sweep of all rooms is spread.
    steps: usize,
}

impl ComparisonPace {
    /// Divides the node's pace equally among its connections. `sweep` is the time in which every room is looked at
    /// once.
    pub(crate) fn new(connections: usize, sweep: Duration) -> Self {
        let per_step = HEADS_PER_SECOND * STEP.as_millis() as usize / 1000;
        let steps = (sweep.as_millis() / STEP.as_millis()) as usize;
        Self { heads: (per_step / connections.max(1)).max(1), steps: steps.max(1) }
    }
}

/// The room's head; `None` in a room without history.
pub(crate) type HeadResult = Result<Option<Cursor>, BrokerError>;
pub(crate) type HeadReply = oneshot::Sender<HeadResult>;

/// The rooms of one subscriber connection, their followers, and the queue of what is to be sent.
#[derive(Default)]
pub(crate) struct Interest {
    rooms: HashMap<Room, RoomInterest>,
    queue: VecDeque<QueueItem>,
    /// What the batches in flight wait for, the oldest batch first.
    in_flight: VecDeque<Vec<PendingReply>>,
    /// The number of the current connection. What an earlier one delivers is dropped.
    connection: u64,
    /// Rooms that may have missed messages during a reconnect, and whose heads have not been compared since.
    uncertain: VecDeque<Room>,
    /// Rooms that the current sweep has not looked at yet.
    sweep: VecDeque<Room>,
    /// How many rooms of `sweep` each step looks at.
    sweep_per_step: usize,
    /// Steps until the next sweep may begin.
    steps_left: usize,
    /// How many heads may be read now.
    credit: usize,
}

/// One followed room.
struct RoomInterest {
    room: Room,
    followers: Vec<SubscriberId>,
    retention: Option<Retention>,
    /// The last command sent for it over this connection was SUBSCRIBE.
    is_subscribed: bool,
    /// A [`QueueItem::Change`] of it is in the queue.
    is_queued: bool,
    /// The last cursor that followers have got, by a message or a head.
    last: Option<Cursor>,
    /// A message with a cursor came since the sweep last looked at the room. The sweep then skips the room once: the
    /// gap in offsets already shows shards what was lost before that message.
    is_busy: bool,
}

/// An item of the queue.
enum QueueItem {
    /// Subscribe or unsubscribe, whichever is right when the item's turn comes.
    Change(Room),
    /// Read a head, or only wait for the items before it.
    Reply(PendingReply),
}

/// What is done with the replies to a batch.
pub(crate) enum PendingReply {
    /// Send the room's head to a new follower, or to a caller of [`Interest::head`]. Without a retention the room has
    /// no head, and the subscription is only confirmed.
    Head(Room, Option<Retention>, HeadReply),
    /// Compare the room's head with what followers have got.
    Compare(Room, Retention),
    /// Report that every room from before the reconnect is subscribed again.
    Synced,
}

/// Rooms on their way from one connection to another, with their followers and the replies that callers wait for.
#[derive(Default)]
pub(crate) struct MovedRooms {
    entries: Vec<RoomInterest>,
    replies: Vec<PendingReply>,
}

/// What to send at once: SUBSCRIBE, then the commands for heads, then UNSUBSCRIBE.
#[derive(Default, Debug)]
pub(crate) struct SubscriptionBatch {
    pub(crate) subscribe: Vec<Room>,
    pub(crate) heads: Vec<(Room, Retention)>,
    pub(crate) unsubscribe: Vec<Room>,
}

impl Interest {
    pub(crate) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Adds a follower. `reply` gets the room's head once the subscription is in force; every follower needs a head of
    /// its own to begin from.
    pub(crate) fn follow(&mut self, who: SubscriberId, room: &Room, retention: Option<Retention>, reply: HeadReply) {
        let entry = self.rooms.entry(room.clone()).or_insert_with(|| RoomInterest {
            room: room.clone(),
            followers: Vec::new(),
            retention,
            is_subscribed: false,
            is_queued: false,
            last: None,
            is_busy: false,
        });
        entry.retention = retention.or(entry.retention);
        if !entry.followers.contains(&who) {
            entry.followers.reserve_exact(1);
            entry.followers.push(who);
        }
        if !entry.is_subscribed && !entry.is_queued {
            entry.is_queued = true;
            self.queue.push_back(QueueItem::Change(room.clone()));
        }
        self.enqueue(PendingReply::Head(room.clone(), retention, reply));
    }

    /// Reads a head without following the room.
    pub(crate) fn head(&mut self, room: &Room, retention: Retention, reply: HeadReply) {
        self.enqueue(PendingReply::Head(room.clone(), Some(retention), reply));
    }

    fn enqueue(&mut self, pending: PendingReply) {
        // While there is no connection, callers ask and give up again and again. Their cancelled requests must not pile
        // up. A search pays only if many are cancelled, which is likely if there are four items for each room: a room
        // needs one change and few replies.
        if self.queue.len() >= QUEUE_MIN && self.queue.len() >= 4 * self.rooms.len() {
            self.queue.retain(|item| !matches!(item, QueueItem::Reply(pending) if pending.is_cancelled()));
        }
        self.queue.push_back(QueueItem::Reply(pending));
    }

    pub(crate) fn unfollow(&mut self, who: SubscriberId, room: &Room) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        entry.followers.retain(|follower| *follower != who);
        if entry.followers.is_empty() && !entry.is_queued {
            entry.is_queued = true;
            self.queue.push_back(QueueItem::Change(room.clone()));
        }
    }

    /// Begins a new connection, on which nothing is subscribed yet.
    pub(crate) fn begin(&mut self, connection: u64) {
        self.connection = connection;
        // Heads that callers wait for are asked for again. Everything else that waited belongs to the old connection.
        let in_flight = take(&mut self.in_flight).into_iter().flatten();
        let in_flight = in_flight.map(QueueItem::Reply);
        let is_head = |item: &QueueItem| matches!(item, QueueItem::Reply(PendingReply::Head(..)));
        let heads: Vec<QueueItem> = in_flight.chain(take(&mut self.queue)).filter(is_head).collect();
        // Every room that is followed is subscribed again, and its head is compared later, at the pace of `step`.
        self.rooms.retain(|_, entry| !entry.followers.is_empty());
        self.uncertain.clear();
        self.sweep.clear();
        for entry in self.rooms.values_mut() {
            entry.subscribe_again(&mut self.queue, &mut self.uncertain);
        }
        // Behind all rooms, so its reply proves that they are subscribed.
        self.queue.push_back(QueueItem::Reply(PendingReply::Synced));
        self.queue.extend(heads);
    }

    /// Queues as many comparisons of heads as the pace allows: first of rooms that a reconnect left uncertain, then of
    /// rooms that were quiet since the last sweep. A room that had messages is skipped once, so a lost message is found
    /// by the second sweep at the latest. Reading a head also extends the expiry of the room's epoch and offset in
    /// Redis.
    pub(crate) fn step(&mut self, pace: ComparisonPace) {
        self.credit = (self.credit + pace.heads).min(pace.heads * SAVED_STEPS);
        self.steps_left = self.steps_left.saturating_sub(1);
        let uncertain = self.uncertain.len().min(self.credit);
        self.credit -= uncertain;
        for room in self.uncertain.drain(..uncertain) {
            self.queue.extend(self.rooms.get(&room).and_then(RoomInterest::compare));
        }
        // A new sweep spreads all rooms evenly over its steps.
        if self.steps_left == 0 && self.sweep.is_empty() {
            self.sweep.extend(self.rooms.keys().cloned());
            (self.sweep_per_step, self.steps_left) = (self.sweep.len().div_ceil(pace.steps), pace.steps);
        }
        // The sweep gets what is left of the credit.
        let swept = self.sweep_per_step.min(self.credit).min(self.sweep.len());
        self.credit -= swept;
        for room in self.sweep.drain(..swept) {
            let Some(entry) = self.rooms.get_mut(&room) else { continue };
            if !take(&mut entry.is_busy) {
                self.queue.extend(entry.compare());
            }
        }
    }

    /// Removes these rooms, with their followers and waiting replies, so that another connection can
    /// [`adopt`](Self::adopt) them. What Redis still sends of them over this connection is dropped.
    pub(crate) fn release(&mut self, these: impl Fn(&Room) -> bool) -> MovedRooms {
        let entries = self.rooms.extract_if(|room, _| these(room)).map(|(_, entry)| entry).collect();
        let queued = self.queue.iter_mut().filter_map(|item| match item {
            QueueItem::Reply(pending) => Some(pending),
            QueueItem::Change(_) => None,
        });
        // A reply in flight leaves a cancelled one behind, because Redis's replies are matched by their order.
        let pending = self.in_flight.iter_mut().flatten().chain(queued);
        let replies = pending.filter_map(|pending| pending.take_head(&these)).collect();
        MovedRooms { entries, replies }
    }

    /// Follows rooms that another connection has released. Messages may have been lost in between, so all of their
    /// heads are compared.
    pub(crate) fn adopt(&mut self, moved: MovedRooms) {
        for mut entry in moved.entries.into_iter().filter(|entry| !entry.followers.is_empty()) {
            entry.subscribe_again(&mut self.queue, &mut self.uncertain);
            self.rooms.insert(entry.room.clone(), entry);
        }
        self.queue.extend(moved.replies.into_iter().map(QueueItem::Reply));
    }

    /// Takes the next batch from the queue; `None` if nothing is to be sent. Its replies are in flight until
    /// [`Interest::settle`] takes them.
    pub(crate) fn batch(&mut self) -> Option<SubscriptionBatch> {
        let mut batch = SubscriptionBatch::default();
        let mut pending_replies = Vec::new();
        for item in self.queue.drain(..self.queue.len().min(BATCH)) {
            match item {
                QueueItem::Reply(pending) if pending.is_cancelled() => {}
                QueueItem::Reply(pending) => {
                    if let PendingReply::Head(room, Some(retention), _) | PendingReply::Compare(room, retention) =
                        &pending
                    {
                        batch.heads.push((room.clone(), *retention));
                    }
                    pending_replies.push(pending);
                }
                QueueItem::Change(room) => {
                    let Some(entry) = self.rooms.get_mut(&room) else { continue };
                    entry.is_queued = false;
                    match (entry.followers.is_empty(), entry.is_subscribed) {
                        (false, false) => {
                            entry.is_subscribed = true;
                            batch.subscribe.push(room);
                        }
                        (true, is_subscribed) => {
                            self.rooms.remove(&room);
                            if is_subscribed {
                                batch.unsubscribe.push(room);
                            }
                        }
                        // The last follower left and another came before the item's turn: nothing is to be sent.
                        (false, true) => {}
                    }
                }
            }
        }
        // An empty batch is returned if more items wait, so that the driver calls again.
        let is_empty = pending_replies.is_empty() && batch.subscribe.is_empty() && batch.unsubscribe.is_empty();
        if is_empty && self.queue.is_empty() {
            return None;
        }
        self.in_flight.push_back(pending_replies);
        Some(batch)
    }

    /// Completes the oldest batch in flight. `heads` are the replies to its commands for heads, in their order. Returns
    /// whether the batch was the last one of a reconnect.
    pub(crate) fn settle(
        &mut self,
        heads: Vec<Result<Cursor, BrokerError>>,
        subscribers: &[Arc<dyn Subscriber>],
    ) -> bool {
        let mut heads = heads.into_iter();
        let mut is_synced = false;
        for pending in self.in_flight.pop_front().unwrap_or_default() {
            match pending {
                PendingReply::Head(room, Some(_), reply) => {
                    let Some(head) = heads.next() else { continue };
                    // The first head is what followers begin from. A later one changes nothing: other followers may
                    // stand at an earlier cursor, and messages up to this head may have been lost.
                    if let (Ok(head), Some(entry)) = (&head, self.rooms.get_mut(&room)) {
                        entry.last = entry.last.or(Some(*head));
                    }
                    let _ = reply.send(head.map(Some)); // the caller may have stopped waiting
                }
                PendingReply::Head(_, None, reply) => drop(reply.send(Ok(None))),
                PendingReply::Compare(room, _) => {
                    // A failed comparison is made up for by the next sweep.
                    if let Some(Ok(head)) = heads.next() {
                        self.compare(&room, head, subscribers);
                    }
                }
                PendingReply::Synced => is_synced = true,
            }
        }
        is_synced
    }

    /// Delivers the head if followers have not got everything up to it. Messages up to the head came before it over the
    /// same connection, so what followers have not got by now was lost.
    fn compare(&mut self, room: &Room, head: Cursor, subscribers: &[Arc<dyn Subscriber>]) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        // Without a last cursor no follower has begun: each still waits for its first head.
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
            entry.is_busy = publication.cursor.is_some();
        }
        entry.deliver(event, subscribers);
    }
}

impl RoomInterest {
    /// Queues the SUBSCRIBE on a connection that does not have the room, and the comparison of its head.
    fn subscribe_again(&mut self, queue: &mut VecDeque<QueueItem>, uncertain: &mut VecDeque<Room>) {
        (self.is_subscribed, self.is_queued) = (false, true);
        queue.push_back(QueueItem::Change(self.room.clone()));
        uncertain.extend(self.last.map(|_| self.room.clone()));
    }

    /// The item that compares the room's head; `None` in a room without history, and before the first head is known.
    fn compare(&self) -> Option<QueueItem> {
        let pending = |retention| PendingReply::Compare(self.room.clone(), retention);
        self.last.and(self.retention).map(|retention| QueueItem::Reply(pending(retention)))
    }

    fn deliver(&self, event: &RoomEvent, subscribers: &[Arc<dyn Subscriber>]) {
        for who in &self.followers {
            if let Some(subscriber) = subscribers.get(usize::from(who.0)) {
                subscriber.deliver(Delivery { room: self.room.clone(), event: event.clone() });
            }
        }
    }
}

impl PendingReply {
    /// Takes out a reply that a caller waits for, if it is for one of these rooms. Leaves a cancelled one in its
    /// position.
    fn take_head(&mut self, these: impl Fn(&Room) -> bool) -> Option<Self> {
        let Self::Head(room, retention, reply) = self else { return None };
        these(room).then(|| Self::Head(room.clone(), *retention, replace(reply, oneshot::channel().0)))
    }

    /// Whether the caller has stopped waiting.
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Head(_, _, reply) => reply.is_closed(),
            Self::Compare(..) | Self::Synced => false,
        }
    }
}

#[cfg(test)]
#[path = "interest_tests.rs"]
mod tests;
