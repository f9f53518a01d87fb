//! Out of rooms, and what becomes of a room without occupants. Called by `commands`, `control`, `timers`, and by
//! everything that ends a session or a poll.

use super::{
    SessionRef, State,
    room::RoomEntry,
    rooms::{Linger, Reached},
};
use crate::session::Stage;
use fanfare_broker::PresenceUpdate;

impl State {
    /// Takes a session out of one room; `false` if it was not in it.
    pub(super) fn leave(&mut self, session: SessionRef, room: &str) -> bool {
        let Some(index) = self.rooms.find(room) else { return false };
        let Some(conn) = self.outgoing.sessions.open(session) else { return false };
        let Some(membership) = conn.session.leave(index) else { return false };
        self.vacate(session, index, membership.stage);
        true
    }

    /// Takes a session that ends out of all its rooms.
    pub(super) fn leave_all(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        for membership in conn.session.take_memberships() {
            self.vacate(session, membership.room, membership.stage);
        }
    }

    /// Takes a session out of a room that it has struck off its own list already; `stage` is what it was there.
    pub(super) fn vacate(&mut self, session: SessionRef, room: u32, stage: Stage) {
        if stage == Stage::Member {
            // A browser that reconnects names the room again, and goes on from here.
            let cursor = self.rooms.get(room).and_then(RoomEntry::cursor);
            self.record_reached(session.index, Reached { room, cursor });
        }
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        let Some(entry) = self.rooms.get_mut(room) else { return };
        if stage == Stage::Member {
            entry.members.remove(session.index, conn.shape);
        }
        entry.pending_presence.retain(|pending| pending.session != session.index);
        let leave = PresenceUpdate::Leave { session: conn.session.id, announce: entry.class.presence };
        drop(self.node.broker.update_presence(&entry.name, leave));
        self.node.metrics.members.dec();
        self.drop_occupant(room, Linger::Briefly);
    }

    /// Takes one occupant off a room, which is followed for a while longer if that was the last one.
    pub(super) fn drop_occupant(&mut self, room: u32, linger: Linger) {
        self.wake_timers();
        self.rooms.vacate(room, linger, self.clock.now_ms());
    }

    /// Stops following the rooms that have had no occupant for long enough.
    pub(super) fn unfollow_expired(&mut self) {
        let now_ms = self.clock.now_ms();
        while let Some(name) = self.rooms.take_expired(now_ms) {
            self.node.broker.unsubscribe(self.me, &name);
            self.node.metrics.rooms.dec();
        }
    }
}
