//! Going out of rooms, and what becomes of a room that nobody is in. Called by `commands`, `notes`, `timers`, and by whatever
//! ends a session or a poll.

use super::{Shard, State, conn::SessionRef, rooms::RoomEntry};
use crate::session::Stage;
use fanfare_broker::PresenceUpdate;

/// How long an empty room stays followed, by [`Linger`]: its next member costs no subscription, and flapping costs none at
/// all. Polls come back after 36 s at the latest, and are then answered from what this shard knows.
const LINGER_MS: [u32; 2] = [2_000, 40_000];
/// Rooms that one shard goes on following for polls to come; others go as soon as those that members left.
const LINGERING_MAX: usize = 16_384;
/// Rooms that nobody is in, beyond which polls may not name new ones.
const EMPTY_MAX: usize = 65_536;

/// How soon the next occupant of a room is to be expected.
#[derive(Debug, Clone, Copy)]
pub(super) enum Linger {
    /// A session left.
    Briefly,
    /// A poll was answered.
    UntilNextPoll,
}

/// Whether a time of the shard's clock, which wraps, is not after another.
fn is_past(due_ms: u32, now_ms: u32) -> bool {
    now_ms.wrapping_sub(due_ms) < u32::MAX / 2
}

impl Shard {
    /// Takes a session out of one room; `false` if it was not in it.
    pub(super) fn leave(&self, state: &mut State, who: SessionRef, room: &str) -> bool {
        let Some(key) = state.rooms.find(room) else { return false };
        let Some(conn) = state.sessions.open(who) else { return false };
        let Some(membership) = conn.session.leave(key) else { return false };
        self.vacate(state, who, key, membership.stage);
        true
    }

    /// Takes a session that ends out of all its rooms.
    pub(super) fn leave_all(&self, state: &mut State, who: SessionRef) {
        let Some(conn) = state.sessions.get(who) else { return };
        for membership in conn.session.take_memberships() {
            self.vacate(state, who, membership.room, membership.stage);
        }
    }

    pub(super) fn vacate(&self, state: &mut State, who: SessionRef, key: u32, stage: Stage) {
        if stage == Stage::Member {
            // A browser that comes back names the room again, and goes on from there.
            let place = state.rooms.get(key).and_then(RoomEntry::place);
            state.note_reached(who.index, (key, place));
        }
        let Some(conn) = state.sessions.get(who) else { return };
        let (session, shape) = (conn.session.id, conn.shape);
        let Some(entry) = state.rooms.get_mut(key) else { return };
        if stage == Stage::Member {
            entry.remove_member(who.index, shape);
        }
        entry.pending_presence.retain(|pending| pending.session != who.index);
        self.node.metrics.members.dec();
        drop(
            self.node
                .broker
                .update_presence(&entry.name, PresenceUpdate::Leave { session, announce: entry.class.presence }),
        );
        self.go(state, key, Linger::Briefly);
    }

    /// Whether polls may have this shard follow one more room.
    pub(super) fn may_watch(&self, state: &State) -> bool {
        state.lingering.iter().map(std::collections::VecDeque::len).sum::<usize>() < EMPTY_MAX
    }

    /// One occupant fewer; an empty room is followed for a while longer.
    pub(super) fn go(&self, state: &mut State, key: u32, linger: Linger) {
        let now_ms = self.now_ms();
        let Some(entry) = state.rooms.get_mut(key) else { return };
        entry.occupants -= 1;
        let linger = if state.lingering[linger as usize].len() < LINGERING_MAX { linger } else { Linger::Briefly };
        let until_ms = now_ms.wrapping_add(LINGER_MS[linger as usize]);
        // Later than any room can be wanted: the clock has wrapped while somebody was in it.
        let is_absurd = !is_past(entry.wanted_until_ms, now_ms.wrapping_add(LINGER_MS[1]));
        if is_absurd || is_past(entry.wanted_until_ms, until_ms) {
            entry.wanted_until_ms = until_ms;
        }
        if entry.occupants == 0 && !std::mem::replace(&mut entry.is_lingering, true) {
            let due = (until_ms, (key, entry.generation));
            self.wake_timers(state);
            state.lingering[linger as usize].push_back(due);
        }
    }

    /// Stops following rooms that have been empty for a while and still are.
    pub(super) fn let_go(&self, state: &mut State) {
        let now_ms = self.now_ms();
        for linger in 0..LINGER_MS.len() {
            while state.lingering[linger].front().is_some_and(|(due, _)| is_past(*due, now_ms)) {
                let Some((_, key)) = state.lingering[linger].pop_front() else { break };
                let Some(entry) = state.rooms.same(key) else { continue };
                entry.is_lingering = false;
                if entry.occupants > 0 {
                    continue; // the last one to leave files it anew
                }
                if !is_past(entry.wanted_until_ms, now_ms) {
                    // Somebody was in it since. Among the slow ones: there it holds up nobody who is in more of a hurry.
                    entry.is_lingering = true;
                    let due = (entry.wanted_until_ms, key);
                    state.lingering[Linger::UntilNextPoll as usize].push_back(due);
                    continue;
                }
                if let Some(name) = state.rooms.remove(key.0) {
                    self.node.broker.unsubscribe(self.me, &name);
                    self.node.metrics.rooms.dec();
                }
            }
        }
    }
}
