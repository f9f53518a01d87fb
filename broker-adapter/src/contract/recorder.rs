//! `Recorder`: the subscriber of the contract's cases. Records everything, and lets a case wait for it with a deadline.

use crate::{Cursor, Delivery, PresenceEvent, Publication, PublishResult, Room, RoomEvent, Subscriber, Ticket};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// How long a case waits for a condition before it fails: far longer than a broker needs on a busy machine.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// More events than any case causes: a broker that delivers them repeats itself.
const EVENTS_MAX: usize = 1 << 20;

#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Seen>,
    changed: Notify,
}

/// Everything that a subscriber has got, in order.
#[derive(Default)]
pub struct Seen {
    pub rooms: HashMap<Room, Vec<RoomEvent>>,
    pub results: Vec<(Ticket, Room, PublishResult)>,
    pub controls: Vec<Bytes>,
    count: usize,
}

impl Seen {
    pub fn messages(&self, room: &Room) -> Vec<Publication> {
        self.pick(room, |event| match event {
            RoomEvent::Message(publication) => Some(publication.clone()),
            _ => None,
        })
    }

    pub fn presence(&self, room: &Room) -> Vec<PresenceEvent> {
        self.pick(room, |event| match event {
            RoomEvent::Presence(presence) => Some(presence.clone()),
            _ => None,
        })
    }

    pub fn heads(&self, room: &Room) -> Vec<Cursor> {
        self.pick(room, |event| match event {
            RoomEvent::Head(head) => Some(*head),
            _ => None,
        })
    }

    pub fn presence_versions(&self, room: &Room) -> Vec<u64> {
        self.pick(room, |event| match event {
            RoomEvent::PresenceVersion(version) => Some(*version),
            _ => None,
        })
    }

    fn pick<T>(&self, room: &Room, f: impl FnMut(&RoomEvent) -> Option<T>) -> Vec<T> {
        self.rooms.get(room).into_iter().flatten().filter_map(f).collect()
    }
}

impl Recorder {
    pub fn now(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `f` returns something.
    pub async fn wait_for<T>(&self, what: &str, mut f: impl FnMut(&Seen) -> Option<T>) -> T {
        let search = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = f(&self.now()) {
                    return found;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(WAIT_MAX, search).await {
            Ok(found) => found,
            Err(_) => {
                let seen = self.now();
                let counts: Vec<_> = seen.rooms.iter().map(|(room, events)| (room, events.len())).take(8).collect();
                panic!("waited in vain for {what}; events per room: {counts:?}, controls: {}", seen.controls.len());
            }
        }
    }

    /// Waits for `count` messages of a room, and returns all that there are.
    pub async fn messages(&self, room: &Room, count: usize) -> Vec<Publication> {
        let what = format!("{count} messages in {room}");
        self.wait_for(&what, |seen| Some(seen.messages(room)).filter(|messages| messages.len() >= count)).await
    }

    /// Waits for `count` presence events of a room, and returns all that there are.
    pub async fn presence(&self, room: &Room, count: usize) -> Vec<PresenceEvent> {
        let what = format!("{count} presence events in {room}");
        self.wait_for(&what, |seen| Some(seen.presence(room)).filter(|events| events.len() >= count)).await
    }

    fn record(&self, f: impl FnOnce(&mut Seen)) {
        let mut seen = self.now();
        seen.count += 1;
        assert!(seen.count < EVENTS_MAX, "a subscriber gets more events than the case has caused");
        f(&mut seen);
        drop(seen);
        self.changed.notify_waiters();
    }
}

impl Subscriber for Recorder {
    fn deliver(&self, delivery: Delivery) {
        self.record(|seen| seen.rooms.entry(delivery.room).or_default().push(delivery.event));
    }

    fn on_published(&self, ticket: Ticket, room: Room, result: PublishResult) {
        self.record(|seen| seen.results.push((ticket, room, result)));
    }

    fn on_control(&self, message: Bytes) {
        self.record(|seen| seen.controls.push(message));
    }
}
