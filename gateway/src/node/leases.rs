//! The presence of polling clients, by leases. A poll that repeats its session's value renews a lease on each of its
//! rooms: the session is present until some time after the poll, and leaves when no other poll has come by then.
//! Renewed by `transport::poll`; [`Leases::expire`] ends leases.
//!
//! The polls of one session may go to any node, so several nodes may hold a lease of it. The broker keeps a session's
//! entry with the node that wrote it last, and ignores a leave by another node. The last writer must be a node whose
//! lease is alive. So a renewal writes the entry again, unless this node has written it a moment ago with about the
//! same end.

use crate::{
    policy::class::Classes,
    protocol::error::{ErrorCode, Refusal},
};
use fanfare_broker::{Broker, PresenceUpdate, Room, SessionId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Leases that one node holds; a few hundred bytes each.
const LEASES_MAX: usize = 100_000;
/// An entry that was written within this time is not written again. Half of the shortest lease of another node.
const WRITTEN_LATELY: Duration = Duration::from_secs(5);
/// Between two looks for expired leases.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a kicked session is refused.
const KICKED: Duration = Duration::from_secs(300);

/// The leases of the polling members whose last poll came to this node.
pub(crate) struct Leases {
    broker: Arc<dyn Broker>,
    classes: Classes,
    held: Mutex<HashMap<(Room, SessionId), Lease>>,
    /// Kicked sessions, with the room (`None`: all rooms) and the time until which they are refused.
    kicked: Mutex<HashMap<(Option<Room>, SessionId), Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    until: Instant,
    written: Instant,
    announce: bool,
}

impl Leases {
    pub(crate) fn new(broker: Arc<dyn Broker>, classes: Classes) -> Self {
        Self { broker, classes, held: Mutex::default(), kicked: Mutex::default() }
    }

    /// Renews the lease of a polling session on a room for `ttl`, and enters the session into the room's presence.
    /// An error: the session was kicked, or this node holds as many leases as it may.
    pub(crate) fn renew(&self, room: &Room, session: SessionId, ttl: Duration) -> Result<(), Refusal> {
        self.admit(room, session)?;
        let announce = self.classes.of(room.as_str()).presence;
        if self.extend((room.clone(), session), announce, Instant::now(), ttl)? {
            drop(
                self.broker.update_presence(room, PresenceUpdate::Enter { session, user: None, info: None, announce }),
            );
        }
        Ok(())
    }

    /// Checks that a polling session may be in a room.
    pub(crate) fn admit(&self, room: &Room, session: SessionId) -> Result<(), Refusal> {
        let (kicked, now) = (self.kicked.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let is_kicked = |room| kicked.get(&(room, session)).is_some_and(|until| now < *until);
        if !kicked.is_empty() && (is_kicked(Some(room.clone())) || is_kicked(None)) {
            return Err(Refusal::new(ErrorCode::Forbidden, "this session was kicked"));
        }
        Ok(())
    }

    /// Ends a session's leases on a room, or on all rooms (`None`), and refuses the session there for five minutes.
    pub(crate) fn kick(&self, room: Option<&Room>, session: SessionId) {
        let (mut kicked, now) = (self.kicked.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        kicked.retain(|_, until| now < *until);
        if kicked.len() < LEASES_MAX {
            kicked.insert((room.cloned(), session), now + KICKED);
        }
        for ((held, by), lease) in self.held().iter_mut() {
            if *by == session && room.is_none_or(|room| room == held) {
                lease.until = now;
            }
        }
    }

    /// Ends expired leases. Runs until the process ends.
    pub(crate) async fn expire(&self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            for ((room, session), announce) in self.take_expired(Instant::now()) {
                drop(self.broker.update_presence(&room, PresenceUpdate::Leave { session, announce }));
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<(Room, SessionId), Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews a lease until `ttl` from now; `true` if the entry in the broker has to be written again.
    fn extend(&self, key: (Room, SessionId), announce: bool, now: Instant, ttl: Duration) -> Result<bool, Refusal> {
        let mut held = self.held();
        let known = held.get(&key).copied();
        if known.is_none() && held.len() >= LEASES_MAX {
            let full = "this node holds as many polling members as it may";
            return Err(Refusal::new(ErrorCode::BackplaneOverloaded, full).retry_after(5_000));
        }
        let is_fresh = |lease: &Lease| {
            now.duration_since(lease.written) < WRITTEN_LATELY && now + ttl < lease.until + WRITTEN_LATELY
        };
        let written = known.filter(is_fresh).map(|lease| lease.written);
        let until = known.map_or(now, |lease| lease.until).max(now + ttl);
        held.insert(key, Lease { until, written: written.unwrap_or(now), announce });
        Ok(written.is_none())
    }

    /// Removes the expired leases, and says which of them were announced.
    fn take_expired(&self, now: Instant) -> Vec<((Room, SessionId), bool)> {
        let mut held = self.held();
        let expired: Vec<_> = held.extract_if(|_, lease| lease.until <= now).collect();
        if held.is_empty() {
            held.shrink_to(1024);
        }
        expired.into_iter().map(|(key, lease)| (key, lease.announce)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::MemoryBroker;

    #[test]
    fn a_lease_is_renewed_by_each_poll_and_expires_once() {
        let (leases, start) =
            (Leases::new(Arc::new(MemoryBroker::new(Vec::new())), Classes::default()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let key = || (Room::parse("a").unwrap(), SessionId([1; 12]));
        let ttl = Duration::from_secs(30);
        assert!(leases.extend(key(), true, at(0), ttl).unwrap(), "new");
        assert!(!leases.extend(key(), true, at(4), ttl).unwrap(), "written a moment ago");
        assert!(leases.extend(key(), true, at(6), ttl).unwrap(), "another node may have written it since");
        assert!(leases.take_expired(at(35)).is_empty());
        assert!(
            leases.extend(key(), true, at(7), Duration::from_secs(60)).unwrap(),
            "its end is later than the written one"
        );
        assert!(!leases.extend(key(), true, at(8), ttl).unwrap());
        // A shorter renewal does not shorten the lease.
        assert!(leases.extend(key(), true, at(35), Duration::from_secs(1)).unwrap());
        assert!(leases.take_expired(at(66)).is_empty());
        assert_eq!(leases.take_expired(at(67)), [(key(), true)]);
        assert!(leases.take_expired(at(99)).is_empty());
    }
}
