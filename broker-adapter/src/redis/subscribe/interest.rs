//! `Interest`: which rooms one subscriber connection follows, and what is to be sent over it next. Pure: no I/O, no
//! clock.
//!
//! Changes of rooms and reads of heads wait in one queue. The driver takes them in batches. A batch is sent over one
//! connection as SUBSCRIBE, heads, UNSUBSCRIBE, and Redis replies in that order. So a reply with a head proves that the
//! room is subscribed, unless its SUBSCRIBE was refused. A room has at most one change in the queue, and what it is,
//! SUBSCRIBE or UNSUBSCRIBE, is decided when it is taken.
//!
//! A room that Redis refuses leaves the others alone: callers who wait for its head get the refusal, and it is subscribed
//! again every [`RETRY_STEPS`] for as long as it has followers.
//!
//! What concerns every room is done by a [`Walk`], a few rooms at a time.

use crate::{
    BrokerError, Cursor, Delivery, Retention, Room, RoomEvent, Subscriber, SubscriberId, redis::Partition,
    redis::walk::Walk,
};
use indexmap::IndexMap;
use std::{
    collections::{HashMap, VecDeque},
    mem::{replace, take},
    sync::Arc,
    time::Duration,
};
use tokio::sync::oneshot;

/// At most this many items in a batch: to subscribe more rooms would occupy Redis for milliseconds.
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
/// How many rooms a step looks at in search of uncertain ones.
const SEARCHED: usize = 16_384;
/// Steps between two attempts to subscribe a room that Redis refuses (2 s): as rarely as shards ask again for a room
/// whose first subscription failed.
const RETRY_STEPS: usize = 20;
/// No connection has this number.
const NO_CONNECTION: u64 = u64::MAX;
/// No batch has this number.
const NO_BATCH: u64 = 0;

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
    rooms: IndexMap<Room, RoomInterest>,
    queue: VecDeque<QueueItem>,
    /// What the batches in flight wait for, the oldest batch first.
    in_flight: VecDeque<SentBatch>,
    /// The number of the last batch.
    last_batch: u64,
    /// The number of the last batch of earlier connections.
    earlier_batches: u64,
    /// The rooms whose last SUBSCRIBE that was replied to was refused. A room without followers goes at its next retry.
    refused: IndexMap<Room, BrokerError>,
    /// Subscribes refused rooms again.
    retry: Walk,
    /// Steps until the next retry may begin.
    steps_to_retry: usize,
    /// The number of the current connection. What an earlier one delivers is dropped.
    connection: u64,
    /// Subscribes the rooms of an earlier connection.
    resubscription: Walk,
    /// All rooms of an earlier connection are in the queue, or have been, and so is [`PendingReply::Synced`].
    is_resubscribed: bool,
    /// Compares uncertain rooms.
    comparison: Walk,
    /// The current sweep.
    sweep: Walk,
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
    /// The batch with its SUBSCRIBE, if that was the last command sent for it and was not refused.
    subscribed_in: u64,
    /// The connection in whose queue a [`QueueItem::Change`] of it is.
    queued_on: u64,
    /// It may have missed events during a reconnect, and has not been compared since.
    is_uncertain: bool,
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
    /// Tell followers the version of the room's presence.
    Presence(Room),
    /// Report that every room from before the reconnect is subscribed again.
    Synced,
}

/// A batch whose replies have not come yet.
struct SentBatch {
    number: u64,
    pending: Vec<PendingReply>,
}

/// The replies to one batch, each list in the order of the batch.
#[derive(Default)]
pub(crate) struct BatchReplies {
    /// The rooms that were to be subscribed, and what Redis says.
    pub(crate) subscribed: Vec<(Room, Result<(), BrokerError>)>,
    pub(crate) heads: Vec<Result<Cursor, BrokerError>>,
    pub(crate) versions: Vec<u64>,
}

/// Rooms on their way from one connection to another, with their followers and the replies that callers wait for.
#[derive(Default)]
pub(crate) struct MovedRooms {
    entries: Vec<RoomInterest>,
    replies: Vec<PendingReply>,
}

impl MovedRooms {
    /// Splits them, since each partition may go to another connection.
    pub(crate) fn by_partition(self) -> HashMap<Partition, Self> {
        let mut parts: HashMap<Partition, Self> = HashMap::new();
        for entry in self.entries {
            parts.entry(Partition::of(&entry.room)).or_default().entries.push(entry);
        }
        for reply in self.replies {
            if let PendingReply::Head(room, ..) = &reply {
                parts.entry(Partition::of(room)).or_default().replies.push(reply);
            }
        }
        parts
    }
}

/// What to send at once: SUBSCRIBE, then the commands for heads and versions of presence, then UNSUBSCRIBE.
#[derive(Default, Debug)]
pub(crate) struct SubscriptionBatch {
    pub(crate) subscribe: Vec<Room>,
    pub(crate) heads: Vec<(Room, Retention)>,
    pub(crate) versions: Vec<Room>,
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
            subscribed_in: NO_BATCH,
            queued_on: NO_CONNECTION,
            is_uncertain: false,
            last: None,
            is_busy: false,
        });
        entry.retention = retention.or(entry.retention);
        if !entry.followers.contains(&who) {
            entry.followers.reserve_exact(1);
            entry.followers.push(who);
        }
        if entry.subscribed_in <= self.earlier_batches {
            entry.queue_change(self.connection, &mut self.queue);
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
        if entry.followers.is_empty() {
            entry.queue_change(self.connection, &mut self.queue);
        }
    }

    /// Begins a new connection, on which nothing is subscribed yet.
    pub(crate) fn begin(&mut self, connection: u64) {
        (self.connection, self.earlier_batches) = (connection, self.last_batch);
        self.refused.clear();
        // Heads that callers wait for are asked for again, once their rooms are subscribed. Everything else that waited
        // belongs to the old connection.
        let in_flight = take(&mut self.in_flight).into_iter().flat_map(|batch| batch.pending);
        let waiting = in_flight.map(QueueItem::Reply).chain(take(&mut self.queue));
        for item in waiting {
            let QueueItem::Reply(PendingReply::Head(room, ..)) = &item else { continue };
            if let Some(entry) = self.rooms.get_mut(room) {
                entry.is_uncertain = true;
                entry.queue_change(connection, &mut self.queue);
            }
            self.queue.push_back(item);
        }
        // All other rooms follow in portions, and are compared at the pace of `step`.
        self.resubscription = Walk::over(&self.rooms);
        self.comparison = Walk::over(&self.rooms);
        self.sweep = Walk::default();
        self.is_resubscribed = false;
    }

    /// Queues the next rooms of an earlier connection, as many as fill a batch.
    fn resubscribe(&mut self) {
        while self.queue.len() < BATCH && !self.is_resubscribed {
            match self.resubscription.next(&mut self.rooms) {
                Some((_, entry)) if entry.subscribed_in > self.earlier_batches => {}
                Some((_, entry)) => {
                    entry.is_uncertain = true;
                    entry.queue_change(self.connection, &mut self.queue);
                }
                // Behind all rooms, so its reply proves that they are subscribed.
                None => {
                    self.is_resubscribed = true;
                    self.queue.push_back(QueueItem::Reply(PendingReply::Synced));
                }
            }
        }
    }

    /// Queues as many comparisons of heads as the pace allows: first of rooms that a reconnect left uncertain, then of
    /// rooms that were quiet since the last sweep. A room that had messages is skipped once, so a lost message is found
    /// by the second sweep at the latest. Reading a head also extends the expiry of the room's epoch and offset in
    /// Redis.
    pub(crate) fn step(&mut self, pace: ComparisonPace) {
        self.retry_refused(pace.heads);
        self.credit = (self.credit + pace.heads).min(pace.heads * SAVED_STEPS);
        self.steps_left = self.steps_left.saturating_sub(1);
        for _ in 0..SEARCHED {
            // A comparison comes after the room's subscription.
            if self.credit == 0 || self.comparison.unseen() <= self.resubscription.unseen() {
                break;
            }
            let Some((_, entry)) = self.comparison.next(&mut self.rooms) else { break };
            if take(&mut entry.is_uncertain) {
                self.credit -= 1;
                entry.queue_comparisons(&mut self.queue);
            }
        }
        // A new sweep spreads all rooms evenly over its steps.
        if self.steps_left == 0 && self.sweep.unseen() == 0 && self.is_resubscribed {
            self.sweep = Walk::over(&self.rooms);
            (self.sweep_per_step, self.steps_left) = (self.rooms.len().div_ceil(pace.steps), pace.steps);
        }
        // The sweep gets what is left of the credit.
        for _ in 0..self.sweep_per_step.min(self.credit) {
            let Some((_, entry)) = self.sweep.next(&mut self.rooms) else { break };
            self.credit -= 1;
            if !take(&mut entry.is_busy) {
                self.queue.extend(entry.compare());
            }
        }
    }

    /// Queues the next refused rooms, at most `count`, so that they come by themselves once Redis takes them.
    fn retry_refused(&mut self, count: usize) {
        self.steps_to_retry = self.steps_to_retry.saturating_sub(1);
        if self.steps_to_retry == 0 && self.retry.unseen() == 0 {
            (self.retry, self.steps_to_retry) = (Walk::over(&self.refused), RETRY_STEPS);
        }
        for _ in 0..count {
            let Some((room, _)) = self.retry.next(&mut self.refused) else { break };
            match self.rooms.get_mut(room) {
                Some(entry) if entry.subscribed_in <= self.earlier_batches => {
                    entry.queue_change(self.connection, &mut self.queue);
                }
                Some(_) => {} // the next attempt is in flight
                None => drop(self.refused.swap_remove_index(self.retry.unseen())),
            }
        }
    }

    /// Removes these rooms, with their followers and waiting replies, so that another connection can
    /// [`adopt`](Self::adopt) them. What Redis still sends of them over this connection is dropped.
    pub(crate) fn release(&mut self, these: impl Fn(&Room) -> bool) -> MovedRooms {
        let entries = self.rooms.extract_if(.., |room, _| these(room)).map(|(_, entry)| entry).collect();
        let queued = self.queue.iter_mut().filter_map(|item| match item {
            QueueItem::Reply(pending) => Some(pending),
            QueueItem::Change(_) => None,
        });
        // A reply in flight leaves a cancelled one behind, because Redis's replies are matched by their order.
        let pending = self.in_flight.iter_mut().flat_map(|batch| &mut batch.pending).chain(queued);
        let replies = pending.filter_map(|pending| pending.take_head(&these)).collect();
        MovedRooms { entries, replies }
    }

    /// Follows rooms that another connection has released. Messages may have been lost in between, so all of their
    /// heads are compared.
    pub(crate) fn adopt(&mut self, moved: MovedRooms) {
        for mut entry in moved.entries.into_iter().filter(|entry| !entry.followers.is_empty()) {
            (entry.subscribed_in, entry.queued_on, entry.is_uncertain) = (NO_BATCH, NO_CONNECTION, true);
            entry.queue_change(self.connection, &mut self.queue);
            self.rooms.insert(entry.room.clone(), entry);
        }
        self.comparison = Walk::over(&self.rooms);
        self.queue.extend(moved.replies.into_iter().map(QueueItem::Reply));
    }

    /// Takes the next batch from the queue; `None` if nothing is to be sent. Its replies are in flight until
    /// [`Interest::settle`] takes them.
    pub(crate) fn batch(&mut self) -> Option<SubscriptionBatch> {
        self.resubscribe();
        let mut batch = SubscriptionBatch::default();
        let mut sent = SentBatch { number: self.last_batch + 1, pending: Vec::new() };
        for item in self.queue.drain(..self.queue.len().min(BATCH)) {
            match item {
                QueueItem::Reply(pending) if pending.is_cancelled() => {}
                QueueItem::Reply(pending) => {
                    if let PendingReply::Head(room, Some(retention), _) | PendingReply::Compare(room, retention) =
                        &pending
                    {
                        batch.heads.push((room.clone(), *retention));
                    }
                    if let PendingReply::Presence(room) = &pending {
                        batch.versions.push(room.clone());
                    }
                    sent.pending.push(pending);
                }
                QueueItem::Change(room) => {
                    let Some(entry) = self.rooms.get_mut(&room) else { continue };
                    entry.queued_on = NO_CONNECTION;
                    match (entry.followers.is_empty(), entry.subscribed_in > self.earlier_batches) {
                        (false, false) => {
                            entry.subscribed_in = sent.number;
                            batch.subscribe.push(room);
                        }
                        (true, is_subscribed) => {
                            self.rooms.swap_remove(&room);
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
        let is_empty = sent.pending.is_empty() && batch.subscribe.is_empty() && batch.unsubscribe.is_empty();
        if is_empty && self.queue.is_empty() {
            return None;
        }
        self.last_batch = sent.number;
        self.in_flight.push_back(sent);
        Some(batch)
    }

    /// Completes the oldest batch in flight. Returns whether it was the last one of a reconnect.
    pub(crate) fn settle(&mut self, replies: BatchReplies, subscribers: &[Arc<dyn Subscriber>]) -> bool {
        let Some(SentBatch { number, pending }) = self.in_flight.pop_front() else { return false };
        for (room, result) in replies.subscribed {
            self.settle_subscription(number, room, result);
        }
        let (mut heads, mut versions) = (replies.heads.into_iter(), replies.versions.into_iter());
        let mut is_synced = false;
        for pending in pending {
            match pending {
                PendingReply::Head(room, Some(_), reply) => {
                    let Some(head) = heads.next() else { continue };
                    let head = self.refusal(&room).map_or(head, Err);
                    // The first head is what followers begin from. A later one changes nothing: other followers may
                    // stand at an earlier cursor, and messages up to this head may have been lost.
                    if let (Ok(head), Some(entry)) = (&head, self.rooms.get_mut(&room)) {
                        entry.last = entry.last.or(Some(*head));
                    }
                    let _ = reply.send(head.map(Some)); // the caller may have stopped waiting
                }
                PendingReply::Head(room, None, reply) => {
                    let _ = reply.send(self.refusal(&room).map_or(Ok(None), Err)); // as above
                }
                PendingReply::Compare(room, _) => {
                    // A failed comparison is made up for by the next sweep.
                    if let Some(Ok(head)) = heads.next() {
                        self.compare(&room, head, subscribers);
                    }
                }
                PendingReply::Presence(room) => {
                    if let (Some(version), Some(entry)) = (versions.next(), self.rooms.get(&room)) {
                        entry.deliver(&RoomEvent::PresenceVersion(version), subscribers);
                    }
                }
                PendingReply::Synced => is_synced = true,
            }
        }
        is_synced
    }

    /// Takes the reply to the SUBSCRIBE of one room in the batch of that number.
    fn settle_subscription(&mut self, number: u64, room: Room, result: Result<(), BrokerError>) {
        match result {
            Ok(()) => {
                // It was refused until now, so messages may have been lost.
                if self.refused.swap_remove(&room).is_some()
                    && let Some(entry) = self.rooms.get(&room)
                {
                    entry.queue_comparisons(&mut self.queue);
                }
            }
            Err(why) => {
                // A later batch may have subscribed the room anew.
                if let Some(entry) = self.rooms.get_mut(&room).filter(|entry| entry.subscribed_in == number) {
                    entry.subscribed_in = NO_BATCH;
                }
                self.refused.insert(room, why);
            }
        }
    }

    /// Why the last SUBSCRIBE of the room was refused, among those whose replies have come. Batches are completed in
    /// the order in which they were sent, so a head of the batch that is being completed was read after that SUBSCRIBE.
    fn refusal(&self, room: &Room) -> Option<BrokerError> {
        self.refused.get(room).cloned()
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
    /// Queues a change, unless one is in the connection's queue already.
    fn queue_change(&mut self, connection: u64, queue: &mut VecDeque<QueueItem>) {
        if replace(&mut self.queued_on, connection) != connection {
            queue.push_back(QueueItem::Change(self.room.clone()));
        }
    }

    /// Queues what shows whether messages or presence events were lost.
    fn queue_comparisons(&self, queue: &mut VecDeque<QueueItem>) {
        queue.extend(self.compare());
        queue.push_back(QueueItem::Reply(PendingReply::Presence(self.room.clone())));
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
            Self::Compare(..) | Self::Presence(_) | Self::Synced => false,
        }
    }
}

#[cfg(test)]
#[path = "interest_tests.rs"]
mod tests;
