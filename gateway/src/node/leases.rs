//! The presence of polling clients, by leases, which the broker keeps. A poll that repeats its session's value renews a
//! lease on each of its rooms, at whichever node: the session is present until some time after the poll, and leaves when
//! no other poll has come by then, or when it gives the lease back. Renewed by `transport::poll`.
//!
//! This node remembers what it has renewed, so that long polls that come often cost the backplane one write a second, and
//! so that a disconnect ends a session's leases at once.

use crate::{
    policy::class::Classes,
    protocol::error::{ErrorCode, Refusal},
};
use fanfare_broker::{Broker, BrokerFuture, PresenceUpdate, Room, SessionId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Leases, and kicks, that one node remembers; a few hundred bytes each. Further leases are renewed by each poll.
const REMEMBERED_MAX: usize = 100_000;
/// A lease that was renewed within this time is not renewed again by a long poll, and so is longer by as much.
const RENEWED_LATELY: Duration = Duration::from_secs(1);
/// Between two looks for what is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a kicked session is refused.
const KICKED: Duration = Duration::from_secs(300);

/// The leases of polling members.
pub(crate) struct Leases {
    broker: Arc<dyn Broker>,
    classes: Classes,
    /// Those that this node has renewed, until they end unless they are renewed elsewhere.
    renewed: Mutex<HashMap<(Room, SessionId), Renewed>>,
    /// Kicked sessions, with the room (`None`: all rooms) and the time until which they are refused.
    kicked: Mutex<HashMap<(Option<Room>, SessionId), Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Renewed {
    at: Instant,
    until: Instant,
}

impl Leases {
    pub(crate) fn new(broker: Arc<dyn Broker>, classes: Classes) -> Self {
        Self { broker, classes, renewed: Mutex::default(), kicked: Mutex::default() }
    }

    /// Renews the lease of a polling session on a room for `ttl`, and so enters the session into the room's presence.
    /// An error: the session was kicked.
    pub(crate) fn renew(&self, room: &Room, session: SessionId, ttl: Duration) -> Result<(), Refusal> {
        self.admit(room, session)?;
        self.remember((room.clone(), session), Instant::now(), ttl);
        let announce = self.classes.of(room.as_str()).presence;
        let lease = PresenceUpdate::Lease { session, announce, ttl: ttl + RENEWED_LATELY };
        drop(self.broker.update_presence(room, lease));
        Ok(())
    }

    /// As [`Leases::renew`], unless this node has renewed the lease within the last second. Then the result is the time at
    /// which to call it again if the poll still waits: the lease may have been given back at another node since.
    pub(crate) fn renew_unless_lately(
        &self,
        room: &Room,
        session: SessionId,
        ttl: Duration,
    ) -> Result<Option<Instant>, Refusal> {
        match self.renewed_lately(&(room.clone(), session), Instant::now(), ttl) {
            Some(again) => self.admit(room, session).map(|()| Some(again)),
            None => self.renew(room, session, ttl).map(|()| None),
        }
    }

    /// Ends a session's lease on a room, whichever node has renewed it.
    pub(crate) fn give_back(&self, room: &Room, session: SessionId) -> BrokerFuture<'_, ()> {
        self.renewed().remove(&(room.clone(), session));
        let announce = self.classes.of(room.as_str()).presence;
        self.broker.update_presence(room, PresenceUpdate::EndLease { session, announce })
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

    /// Ends a session's leases that this node has renewed, on a room or on all rooms (`None`), and refuses the session
    /// there for five minutes.
    pub(crate) fn kick(&self, room: Option<&Room>, session: SessionId) {
        let now = Instant::now();
        {
            let mut kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
            kicked.retain(|_, until| now < *until);
            if kicked.len() < REMEMBERED_MAX {
                kicked.insert((room.cloned(), session), now + KICKED);
            }
        }
        let rooms: Vec<Room> = {
            let renewed = self.renewed();
            let of = renewed.keys().filter(|(of, by)| *by == session && room.is_none_or(|room| room == of));
            of.map(|(room, _)| room.clone()).collect()
        };
        for room in rooms {
            drop(self.give_back(&room, session));
        }
    }

    /// Ends what is over. Runs until the process ends.
    pub(crate) async fn expire(&self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            self.broker.end_leases();
            self.forget(Instant::now());
        }
    }

    fn renewed(&self) -> MutexGuard<'_, HashMap<(Room, SessionId), Renewed>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lease was renewed within the last second, and for as long as `ttl` from now; until when that holds.
    fn renewed_lately(&self, key: &(Room, SessionId), now: Instant, ttl: Duration) -> Option<Instant> {
        let known = self.renewed().get(key).copied()?;
        let again = known.at + RENEWED_LATELY;
        (now < again && now + ttl <= known.until + RENEWED_LATELY).then_some(again)
    }

    /// Remembers a renewal until `ttl` from now.
    fn remember(&self, key: (Room, SessionId), now: Instant, ttl: Duration) {
        let mut renewed = self.renewed();
        let known = renewed.get(&key).copied();
        if known.is_some() || renewed.len() < REMEMBERED_MAX {
            let until = known.map_or(now + ttl, |known| known.until.max(now + ttl));
            renewed.insert(key, Renewed { at: now, until });
        }
    }

    fn forget(&self, now: Instant) {
        let mut renewed = self.renewed();
        renewed.retain(|_, lease| lease.until > now);
        if renewed.is_empty() {
            renewed.shrink_to(1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::MemoryBroker;

    #[test]
    fn a_lease_is_renewed_once_a_second_and_forgotten_at_its_end() {
        let (leases, start) =
            (Leases::new(Arc::new(MemoryBroker::new(Vec::new())), Classes::default()), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let key = (Room::parse("a").unwrap(), SessionId([1; 12]));
        let ttl = Duration::from_secs(30);
        let lately = |ms, ttl| leases.renewed_lately(&key, at(ms), ttl);
        assert_eq!(lately(0, ttl), None, "new");
        leases.remember(key.clone(), at(0), ttl);
        assert_eq!(lately(900, ttl), Some(at(1_000)), "renewed a moment ago, and for longer than asked");
        assert_eq!(lately(950, Duration::from_secs(60)), None, "its end is later");
        assert_eq!(lately(1_000, ttl), None, "it may have been given back elsewhere");
        leases.remember(key.clone(), at(1_000), Duration::from_secs(60));
        leases.remember(key.clone(), at(2_000), ttl);
        leases.forget(at(60_900));
        assert_eq!(leases.renewed().len(), 1);
        leases.forget(at(61_000));
        assert!(leases.renewed().is_empty());
    }
}
