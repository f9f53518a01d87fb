//! What other threads, and the embedded broker, have for a shard: one bounded queue that is taken whole. Pushed to by
//! the broker (`Subscriber`); drained by the shard's loop. The lock is held for a push or a swap, never longer.

use crate::node::metrics::Metrics;
use bytes::Bytes;
use fanfare_broker::{Delivery, PublishResult, Room, RoomEvent, Subscriber, Ticket};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Deliveries that may wait: a quarter of a second's worth at the highest rate a shard can take.
const DELIVERIES_MAX: usize = 65_536;
/// Payload bytes that may wait.
const BYTES_MAX: usize = 64 << 20;
/// Items taken at a time, so that no pass keeps others waiting for long.
const TAKE_MAX: usize = 1024;

/// One thing for a shard to do.
#[derive(Debug)]
pub(crate) enum Item {
    Deliver(Delivery),
    Published(Ticket, Room, PublishResult),
    Control(Bytes),
    /// The broker's word that this room's deliveries did not fit: catch up from history.
    Behind(Room),
}

/// See the module's head.
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    wake: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    deliveries: usize,
    bytes: usize,
    /// Rooms with history of which a message did not fit. Bounded by the rooms the shard follows.
    behind: HashSet<Room>,
}

impl Inbox {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { queue: Mutex::default(), wake: Notify::new(), metrics }
    }

    /// Moves the oldest of what waits into `items`.
    pub(crate) fn take(&self, items: &mut Vec<Item>) {
        let mut queue = self.lock();
        let count = queue.items.len().min(TAKE_MAX);
        items.extend(queue.items.drain(..count));
        for item in items.iter() {
            if let Item::Deliver(delivery) = item {
                queue.deliveries -= 1;
                queue.bytes -= payload_bytes(delivery);
            }
        }
        if queue.items.is_empty() {
            items.extend(queue.behind.drain().map(Item::Behind));
            queue.items.shrink_to(TAKE_MAX);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let queue = self.lock();
        queue.items.is_empty() && queue.behind.is_empty()
    }

    /// Wakes the shard's loop.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for [`Inbox::wake`]; one that came before counts.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn push(&self, item: Item) {
        let first = {
            let mut queue = self.lock();
            queue.items.push_back(item);
            queue.items.len() == 1
        };
        if first {
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
        RoomEvent::Presence(_) | RoomEvent::Head(_) => 0,
    }
}

impl Subscriber for Inbox {
    fn deliver(&self, delivery: Delivery) {
        let bytes = payload_bytes(&delivery);
        let first = {
            let mut queue = self.lock();
            if queue.deliveries >= DELIVERIES_MAX || queue.bytes + bytes > BYTES_MAX {
                self.metrics.inbox_overflows.inc();
                // Rooms without history are at-most-once: the counter is all that is left of the message.
                if !matches!(&delivery.event, RoomEvent::Message(p) if p.cursor.is_none()) {
                    queue.behind.insert(delivery.room);
                }
                return;
            }
            queue.deliveries += 1;
            queue.bytes += bytes;
            queue.items.push_back(Item::Deliver(delivery));
            queue.items.len() == 1
        };
        if first {
            self.wake();
        }
    }

    fn on_published(&self, ticket: Ticket, room: Room, outcome: PublishResult) {
        self.push(Item::Published(ticket, room, outcome));
    }

    fn on_control(&self, message: Bytes) {
        self.push(Item::Control(message));
    }
}
