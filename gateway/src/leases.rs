//! Who is present by polling. A poll that repeats its session's value is a lease: the session is in its rooms until some
//! time after the poll, and leaves once, when no other one came in time. Renewed by `transport::poll`; [`expire`] ends
//! those whose time is over.
//!
//! Polls of one session may go to any node. The broker keeps a session's entry with the node that wrote it last, and an
//! older one's leave does nothing; so that the last writer is a node whose lease is alive, a lease that is renewed is
//! written again unless that was done a moment ago and for about as long.

use crate::{
    error::{ErrorCode, Refusal},
    node::Node,
};
use fanfare_broker::{PresenceUpdate, Room, SessionId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Leases that one node holds; a few hundred bytes each.
const LEASES_MAX: usize = 100_000;
/// A lease that was written so recently is not written again. Half of the shortest lease that another node may hold.
const WRITTEN_LATELY: Duration = Duration::from_secs(5);
/// Between two looks for leases that are over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a session that was kicked is refused.
const KICKED: Duration = Duration::from_secs(300);

/// See the module's head.
#[derive(Default)]
pub(crate) struct Leases {
    held: Mutex<HashMap<(Room, SessionId), Lease>>,
    /// Who was kicked, from which room (`None`: all), until when.
    kicked: Mutex<HashMap<(Option<Room>, SessionId), Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    until: Instant,
    written: Instant,
    announce: bool,
}

impl Leases {
    fn held(&self) -> MutexGuard<'_, HashMap<(Room, SessionId), Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a session is in a room for so long; `true` if the broker has to hear of it.
    fn renew(&self, place: (Room, SessionId), announce: bool, now: Instant, lasts: Duration) -> Result<bool, Refusal> {
        let mut held = self.held();
        let known = held.get(&place).copied();
        if known.is_none() && held.len() >= LEASES_MAX {
            let full = "this node holds as many polling members as it may";
            return Err(Refusal::new(ErrorCode::BackplaneOverloaded, full).retry_after(5_000));
        }
        let is_fresh = |lease: &Lease| {
            now.duration_since(lease.written) < WRITTEN_LATELY && now + lasts < lease.until + WRITTEN_LATELY
        };
        let written = known.filter(is_fresh).map(|lease| lease.written);
        let until = known.map_or(now, |lease| lease.until).max(now + lasts);
        held.insert(place, Lease { until, written: written.unwrap_or(now), announce });
        Ok(written.is_none())
    }

    /// Whether a session was kicked from a room, or from everywhere.
    fn is_kicked(&self, room: &Room, session: SessionId, now: Instant) -> bool {
        let kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        let until = |room| kicked.get(&(room, session)).is_some_and(|until| now < *until);
        !kicked.is_empty() && (until(Some(room.clone())) || until(None))
    }

    /// Ends a session's leases in a room, or in all.
    fn kick(&self, room: Option<&Room>, session: SessionId, now: Instant) {
        let mut kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        kicked.retain(|_, until| now < *until);
        if kicked.len() < LEASES_MAX {
            kicked.insert((room.cloned(), session), now + KICKED);
        }
        for ((_, _), lease) in
            self.held().iter_mut().filter(|((held, by), _)| *by == session && room.is_none_or(|room| room == held))
        {
            lease.until = now;
        }
    }

    /// Takes out those that are over.
    fn over(&self, now: Instant) -> Vec<((Room, SessionId), bool)> {
        let mut held = self.held();
        let over: Vec<_> = held.extract_if(|_, lease| lease.until <= now).collect();
        if held.is_empty() {
            held.shrink_to(1024);
        }
        over.into_iter().map(|(place, lease)| (place, lease.announce)).collect()
    }
}

impl Node {
    /// Has a session be present in a room for so long from now.
    ///
    /// # Errors
    /// The session was kicked, or this node holds as many leases as it may.
    pub(crate) fn lease(&self, room: &Room, session: SessionId, lasts: Duration) -> Result<(), Refusal> {
        self.admits_poller(room, session)?;
        let announce = self.classes.of(room.as_str()).presence;
        if self.leases.renew((room.clone(), session), announce, Instant::now(), lasts)? {
            drop(
                self.broker.update_presence(room, PresenceUpdate::Enter { session, user: None, info: None, announce }),
            );
        }
        Ok(())
    }

    /// Whether a polling session may be in a room.
    ///
    /// # Errors
    /// It was kicked.
    pub(crate) fn admits_poller(&self, room: &Room, session: SessionId) -> Result<(), Refusal> {
        if self.leases.is_kicked(room, session, Instant::now()) {
            return Err(Refusal::new(ErrorCode::Forbidden, "this session was kicked"));
        }
        Ok(())
    }

    /// Ends what a polling session has in a room, or in all, and refuses it for a while. Every node hears of it.
    pub(crate) fn kick_poller(&self, room: Option<&Room>, session: SessionId) {
        self.leases.kick(room, session, Instant::now());
    }
}

/// Ends leases for ever.
pub(crate) async fn expire(node: Arc<Node>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        for ((room, session), announce) in node.leases.over(Instant::now()) {
            drop(node.broker.update_presence(&room, PresenceUpdate::Leave { session, announce }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::SessionId;

    #[test]
    fn a_lease_is_renewed_by_each_poll_and_over_once() {
        let (leases, start) = (Leases::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let place = || (Room::parse("a").unwrap(), SessionId([1; 12]));
        let lasts = Duration::from_secs(30);
        assert!(leases.renew(place(), true, at(0), lasts).unwrap(), "new");
        assert!(!leases.renew(place(), true, at(4), lasts).unwrap(), "written a moment ago");
        assert!(leases.renew(place(), true, at(6), lasts).unwrap(), "another node may have written it since");
        assert!(leases.over(at(35)).is_empty());
        assert!(
            leases.renew(place(), true, at(7), Duration::from_secs(60)).unwrap(),
            "longer than what others know of"
        );
        assert!(!leases.renew(place(), true, at(8), lasts).unwrap());
        // A shorter one does not end a longer one early.
        assert!(leases.renew(place(), true, at(35), Duration::from_secs(1)).unwrap());
        assert!(leases.over(at(66)).is_empty());
        assert_eq!(leases.over(at(67)), [(place(), true)]);
        assert!(leases.over(at(99)).is_empty());
    }
}
