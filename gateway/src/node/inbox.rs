//! What other threads, and the embedded broker, have for a shard: a bounded queue that is taken in portions. The broker
//! (`Subscriber`) pushes; the shard's loop takes. The lock is held for one push or one take, never longer.

use crate::node::metrics::Metrics;
use bytes::Bytes;
use fanfare_broker::{Delivery, PresenceEvent, PublishResult, Room, RoomEvent, Subscriber, Ticket};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Deliveries that may wait: a quarter of a second's worth at the highest rate a shard can take.
const DELIVERIES_MAX: usize = 65_536;
/// Payload bytes that may wait.
const BYTES_MAX: usize = 64 << 20;
/// Items, and results of publishes, taken at a time, so that one turn of the shard's loop does not take long.
const TAKE_MAX: usize = 1024;
/// Payload bytes taken at a time; the last message of them may exceed this.
const TAKE_BYTES: usize = 256 << 10;

/// One thing for a shard to do.
#[derive(Debug)]
pub(crate) enum Item {
    Deliver(Delivery),
    /// Deliveries of this room did not fit: the shard reads them from history.
    Behind(Room),
    /// Presence events of this room up to this version did not fit: its members get a new list.
    PresenceBehind(Room, u64),
    Control(Bytes),
}

/// The broker's result of one publish.
#[derive(Debug)]
pub(crate) struct PublishDone {
    pub(crate) ticket: Ticket,
    pub(crate) room: Room,
    pub(crate) result: PublishResult,
}

/// What a shard takes from its inbox at a time. The results of publishes are apart, because they need not keep their
/// order among the items: they go to the publishers before the messages go to the members.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) published: Vec<PublishDone>,
    pub(crate) items: Vec<Item>,
}

/// The queue into one shard.
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    wake: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Queue {
    /// Bounded by the publishes that may be in flight.
    published: VecDeque<PublishDone>,
    items: VecDeque<Item>,
    deliveries: usize,
    bytes: usize,
    /// The rooms with an [`Item::Behind`] among the items. Bounded by the rooms the shard follows.
    behind: HashSet<Room>,
    /// The rooms with an [`Item::PresenceBehind`], and the version of the latest event that did not fit.
    presence_behind: HashMap<Room, u64>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.published.is_empty() && self.items.is_empty()
    }
}

impl Inbox {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { queue: Mutex::default(), wake: Notify::new(), metrics }
    }

    /// Moves the oldest of what waits into `taken`.
    pub(crate) fn take(&self, taken: &mut Taken) {
        let mut queue = self.lock();
        let count = queue.published.len().min(TAKE_MAX);
        taken.published.extend(queue.published.drain(..count));
        let enough = queue.bytes.saturating_sub(TAKE_BYTES);
        while taken.items.len() < TAKE_MAX && (queue.bytes > enough || enough == 0) {
            let Some(mut item) = queue.items.pop_front() else { break };
            match &mut item {
                Item::Deliver(delivery) => {
                    queue.deliveries -= 1;
                    queue.bytes -= payload_bytes(delivery);
                }
                Item::Behind(room) => drop(queue.behind.remove(room)),
                Item::PresenceBehind(room, version) => {
                    *version = queue.presence_behind.remove(room).unwrap_or(*version);
                }
                Item::Control(_) => {}
            }
            taken.items.push(item);
        }
        if queue.items.is_empty() {
            queue.items.shrink_to(TAKE_MAX);
        }
        if queue.published.is_empty() {
            queue.published.shrink_to(TAKE_MAX);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for [`Inbox::wake`]. A wake that came before the wait ends it at once.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Puts something into the queue, and wakes the loop if the queue was empty.
    fn push(&self, put: impl FnOnce(&mut Queue)) {
        let was_empty = {
            let mut queue = self.lock();
            let was_empty = queue.is_empty();
            put(&mut queue);
            was_empty
        };
        if was_empty {
            self.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn payload_bytes(delivery: &Delivery) -> usize {
    match &delivery.event {
        RoomEvent::Message(publication) => publication.payload.len(),
        RoomEvent::Presence(_) | RoomEvent::Head(_) | RoomEvent::PresenceVersion(_) => 0,
    }
}

impl Subscriber for Inbox {
    fn deliver(&self, delivery: Delivery) {
        let bytes = payload_bytes(&delivery);
        self.push(|queue| {
            if queue.deliveries < DELIVERIES_MAX && queue.bytes + bytes <= BYTES_MAX {
                queue.deliveries += 1;
                queue.bytes += bytes;
                queue.items.push_back(Item::Deliver(delivery));
                return;
            }
            self.metrics.inbox_overflows.inc();
            let Delivery { room, event } = delivery;
            match event {
                // Rooms without history are at-most-once: the counter is all that is left of the message.
                RoomEvent::Message(message) if message.cursor.is_none() => {}
                // The mark comes after what did fit, so the shard reads history only for the rest.
                RoomEvent::Message(_) | RoomEvent::Head(_) => {
                    if queue.behind.insert(room.clone()) {
                        queue.items.push_back(Item::Behind(room));
                    }
                }
                RoomEvent::Presence(PresenceEvent { version, .. }) | RoomEvent::PresenceVersion(version) => {
                    if queue.presence_behind.insert(room.clone(), version).is_none() {
                        queue.items.push_back(Item::PresenceBehind(room, version));
                    }
                }
            }
        });
    }

    fn on_published(&self, ticket: Ticket, room: Room, result: PublishResult) {
        self.push(|queue| queue.published.push_back(PublishDone { ticket, room, result }));
    }

    fn on_control(&self, message: Bytes) {
        self.push(|queue| queue.items.push_back(Item::Control(message)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::{PresenceKind, SessionId, Who};

    /// It used to lead to a read of history, which has no presence events.
    #[test]
    fn a_presence_event_that_does_not_fit_asks_for_a_new_list() {
        let inbox = Inbox::new(Metrics::new("a"));
        let room = Room::parse("a").unwrap();
        let event = |version| {
            let who = Who::Session(SessionId([0; 12]));
            RoomEvent::Presence(PresenceEvent { kind: PresenceKind::Joined, who, info: None, version })
        };
        let last = DELIVERIES_MAX as u64 + 2;
        (1..=last).for_each(|version| inbox.deliver(Delivery { room: room.clone(), event: event(version) }));
        let mut taken = Taken::default();
        while !inbox.is_empty() {
            taken.items.clear();
            inbox.take(&mut taken);
        }
        assert!(matches!(taken.items.last(), Some(Item::PresenceBehind(of, at)) if *of == room && *at == last));
        assert!(!taken.items.iter().any(|item| matches!(item, Item::Behind(_))));
    }
}
