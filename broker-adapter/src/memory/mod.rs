//! The embedded broker: everything is in the memory of this process, and nothing has to be installed. It has all of the
//! contract: history, cursors, idempotency, presence. In tests its subscribers stand for several nodes.
//!
//! Rooms are divided among stripes. Each stripe has a lock that is held for one operation and never across an await. A
//! publish delivers while it holds the lock of its stripe, so a room has one order.

mod room;

use crate::{
    Broker, BrokerError, BrokerFuture, Cursor, Delivery, HistoryQuery, MessageId, NodeId, NodeTarget, Page, Presence,
    PresenceDetail, PresenceUpdate, Publication, Publish, Published, Reply, Retention, Room, RoomEvent, RoomList,
    RoomQuery, SessionId, Status, Subscriber, SubscriberId,
};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use room::RoomState;
use std::{
    collections::hash_map::RandomState,
    collections::{BTreeSet, HashMap},
    future::ready,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Stripes, each with a lock: with 64 of them two shards rarely wait for each other.
const STRIPES: usize = 64;
/// The shortest interval between two sweeps of a stripe, which drop what has expired.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The embedded broker: serves the subscribers of one process from memory.
pub struct MemoryBroker {
    node: NodeId,
    subscribers: Vec<Arc<dyn Subscriber>>,
    stripes: Vec<Mutex<Stripe>>,
    hasher: RandomState,
    numbers: AtomicU64,
    /// When to look at the lease of each session that has one: not after its end, but before if it was renewed since.
    leases: Mutex<BTreeSet<(Instant, Room, SessionId)>>,
    /// Grows whenever a room that has had messages is forgotten, so that the next room of that name has another epoch.
    era: AtomicU64,
}

struct Stripe {
    rooms: HashMap<Room, RoomState>,
    swept: Instant,
}

impl MemoryBroker {
    /// Makes a broker for these subscribers; [`SubscriberId`] is the index.
    ///
    /// # Panics
    /// If there are more than [`u16::MAX`] subscribers.
    #[must_use]
    pub fn new(subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        assert!(subscribers.len() <= usize::from(u16::MAX), "a process has fewer subscribers");
        let swept = Instant::now();
        Self {
            node: NodeId::random(),
            subscribers,
            stripes: (0..STRIPES).map(|_| Mutex::new(Stripe { rooms: HashMap::new(), swept })).collect(),
            hasher: RandomState::new(),
            numbers: AtomicU64::new(1),
            leases: Mutex::default(),
            era: AtomicU64::new(0),
        }
    }

    fn stripe(&self, room: &Room) -> MutexGuard<'_, Stripe> {
        let stripe = &self.stripes[self.hasher.hash_one(room) as usize % STRIPES];
        let mut stripe = stripe.lock();
        let now = Instant::now();
        if now.duration_since(stripe.swept) >= SWEEP_EVERY {
            stripe.swept = now;
            self.sweep(&mut stripe, now);
        }
        stripe
    }

    fn sweep(&self, stripe: &mut Stripe, now: Instant) {
        stripe.rooms.retain(|_, room| {
            room.expire(now);
            if !room.can_be_forgotten(now) {
                return true;
            }
            self.count_forgotten(room);
            false
        });
        stripe.rooms.shrink_to(stripe.rooms.len() * 2);
    }

    fn count_forgotten(&self, room: &RoomState) {
        if room.has_had_messages() {
            self.era.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs `f` on the room's state, which is made first if it does not exist, and dropped afterwards if it is empty.
    fn with_room<T>(&self, name: &Room, f: impl FnOnce(&mut RoomState) -> T) -> T {
        let mut stripe = self.stripe(name);
        let era = self.era.load(Ordering::Relaxed);
        let state = stripe.rooms.entry(name.clone()).or_insert_with(|| RoomState::new(self.epoch_bits(name, era)));
        let result = f(state);
        if state.can_be_forgotten(Instant::now()) {
            self.count_forgotten(state);
            stripe.rooms.remove(name);
        }
        result
    }

    /// The epoch of a room in an era. A room without messages may be dropped and made again: it gets the same epoch, so
    /// its cursors stay valid.
    fn epoch_bits(&self, room: &Room, era: u64) -> u64 {
        self.hasher.hash_one((room, era, self.node.0))
    }

    fn deliver(&self, name: &Room, room: &RoomState, event: &RoomEvent) {
        for who in room.followers() {
            if let Some(subscriber) = self.subscribers.get(usize::from(who.0)) {
                subscriber.deliver(Delivery { room: name.clone(), event: event.clone() });
            }
        }
    }
}

impl Broker for MemoryBroker {
    fn publish(&self, publish: Publish, reply: Reply) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let name = publish.room.clone();
        let published = self.with_room(&name, |room| {
            let now = Instant::now();
            if let Some(first) = publish.key.as_ref().and_then(|key| room.published_before(key, now)) {
                return Published { cursor: first, duplicate: true };
            }
            let cursor = publish.retention.map(|_| room.next_cursor());
            let publication = Publication {
                cursor,
                id: MessageId { node: self.node, number },
                author: publish.author,
                ts_ms: publish.ts_ms,
                payload: publish.payload,
            };
            if let Some(retention) = publish.retention {
                room.keep(&publication, retention, now);
            }
            if let Some(key) = publish.key {
                room.remember(key, cursor, now);
            }
            self.deliver(&name, room, &RoomEvent::Message(publication));
            Published { cursor, duplicate: false }
        });
        reply.report(&self.subscribers, name, Ok(published));
    }

    fn subscribe(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> BrokerFuture<'_, Option<Cursor>> {
        let head = self.with_room(room, |state| {
            state.follow(who);
            retention.map(|_| state.head())
        });
        Box::pin(ready(Ok(head)))
    }

    fn unsubscribe(&self, who: SubscriberId, room: &Room) {
        self.with_room(room, |state| state.unfollow(who));
    }

    fn history(&self, room: &Room, _: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page> {
        let page = self.with_room(room, |state| {
            state.expire(Instant::now());
            state.page(query)
        });
        Box::pin(ready(Ok(page)))
    }

    fn update_presence(&self, room: &Room, update: PresenceUpdate) -> BrokerFuture<'_, ()> {
        self.with_room(room, |state| {
            // A renewed lease is looked at when it would have ended without that.
            let new_lease = match update {
                PresenceUpdate::Lease { session, .. } if state.leased_until(session).is_none() => Some(session),
                _ => None,
            };
            if let Some(event) = state.update_presence(update) {
                self.deliver(room, state, &RoomEvent::Presence(event));
            }
            if let Some(session) = new_lease
                && let Some(until) = state.leased_until(session)
            {
                self.leases.lock().insert((until, room.clone(), session));
            }
        });
        Box::pin(ready(Ok(())))
    }

    fn end_leases(&self) {
        let now = Instant::now();
        let due = || {
            let mut leases = self.leases.lock();
            if leases.first().is_some_and(|(at, ..)| *at <= now) { leases.pop_first() } else { None }
        };
        while let Some((_, room, session)) = due() {
            let until = self.with_room(&room, |state| {
                let until = state.leased_until(session)?;
                if until > now {
                    return Some(until);
                }
                if let Some(event) = state.end_lease(session) {
                    self.deliver(&room, state, &RoomEvent::Presence(event));
                }
                None
            });
            if let Some(until) = until {
                self.leases.lock().insert((until, room, session));
            }
        }
    }

    fn presence(&self, room: &Room, detail: PresenceDetail) -> BrokerFuture<'_, Arc<Presence>> {
        Box::pin(ready(Ok(Arc::new(self.with_room(room, |state| state.presence(detail))))))
    }

    fn rooms(&self, query: RoomQuery) -> BrokerFuture<'_, RoomList> {
        let mut rooms: Vec<Room> = Vec::new();
        for stripe in &self.stripes {
            let stripe = stripe.lock();
            let matching = stripe.rooms.iter().filter(|(name, state)| {
                state.has_sessions()
                    && name.as_str().starts_with(&query.prefix)
                    && query.after.as_deref().is_none_or(|after| name.as_str() > after)
            });
            rooms.extend(matching.map(|(name, _)| name.clone()));
        }
        rooms.sort_unstable();
        let more = rooms.len() > query.limit;
        rooms.truncate(query.limit);
        Box::pin(ready(Ok(RoomList { rooms, more })))
    }

    fn send_control(&self, target: NodeTarget, message: Bytes) -> BrokerFuture<'_, bool> {
        let is_here = matches!(target, NodeTarget::All) || target == NodeTarget::One(self.node);
        if is_here {
            self.subscribers.iter().for_each(|s| s.on_control(message.clone()));
        }
        Box::pin(ready(Ok(is_here)))
    }

    fn availability(&self, _: &Room) -> Result<(), BrokerError> {
        Ok(())
    }

    fn status(&self) -> Status {
        let rooms = self.stripes.iter().map(|s| s.lock().rooms.len() as u64);
        Status { node: self.node, up: true, reconnects: 0, in_flight: 0, rooms: rooms.sum(), unreadable: 0 }
    }

    fn close(&self) -> BrokerFuture<'_, ()> {
        Box::pin(ready(Ok::<(), BrokerError>(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Recorder, TestNode};

    /// Three subscribers of one broker stand for three nodes. Nothing else has to be kept alive.
    async fn three_nodes() -> (Vec<TestNode>, ()) {
        let seen: Vec<Arc<Recorder>> = (0..3).map(|_| Arc::default()).collect();
        let subscribers = seen.iter().map(|s| Arc::clone(s) as Arc<dyn Subscriber>).collect();
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(subscribers));
        let node = |(n, seen)| TestNode { broker: Arc::clone(&broker), me: SubscriberId(n), seen };
        ((0..).zip(seen).map(node).collect(), ())
    }

    crate::contract_tests!(
        #[tokio::test]
        three_nodes
    );
}
