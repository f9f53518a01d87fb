//! `Roster`: the sessions of this node and their rooms. Changes that could not be written to Redis are written later,
//! and members that Redis has lost are written again.
//!
//! A change is recorded first and sent second, under one lock, so that Redis gets the changes in the order in which the
//! roster took them. Nothing here waits.

use crate::{
    BrokerError, NodeId, PresenceUpdate, Room, User, Who, envelope,
    redis::{
        Membership, PresenceChange, PresenceCommand, PresenceEntry, Publisher, WriteCommand, walk::Walk,
        write::publisher::RefusedCommand,
    },
};
use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;
use std::{collections::HashSet, mem::replace, sync::Arc};
use tokio::sync::oneshot;

/// A deferred leave is sent after this many regular heartbeats. By then the other nodes are connected again too (they
/// try at least every second) and have written their members, so no user is announced as gone who is still at another
/// node.
const LEAVE_ROUNDS: u32 = 5;

/// How many entries are marked to be written again while the lock is held: 1 ms.
const MARKED: usize = 4096;

/// Whether a change is written. An error means: not yet.
pub(crate) type Written = Result<(), BrokerError>;

/// Why everything has to be written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Redis has no record of this node. No leave was announced.
    Forgotten,
    /// Another node took this node for dead: it removes this node's members and announces that they left.
    Swept,
}

/// Remembers the sessions of this node until Redis has their last change.
#[derive(Debug)]
pub(crate) struct Roster {
    state: Mutex<RosterState>,
}

#[derive(Debug)]
struct RosterState {
    /// The owner of this node's entries in Redis: a new one each time that they have to be written again, so that a
    /// node which removes the entries of the old owner leaves the new ones alone.
    owner: NodeId,
    entries: IndexMap<Membership, RosterEntry>,
    /// The latest time that everything had to be written again.
    rewrite: Rewrite,
    /// Marks the entries for that.
    marking: Walk,
    /// Changes that Redis does not have and that are not on their way to it.
    unwritten: HashSet<Membership>,
    /// The number of the latest change.
    changes: u64,
    deferred_leaves: Vec<DeferredLeave>,
}

/// Everything has to be written again.
#[derive(Debug, Clone, Copy)]
struct Rewrite {
    number: u32,
    loss: Loss,
}

/// A session that left while Redis was away, and was written as present once more.
#[derive(Debug)]
struct DeferredLeave {
    membership: Membership,
    /// Its leave is sent after this many further regular heartbeats.
    rounds_left: u32,
}

#[derive(Debug)]
struct RosterEntry {
    user: Option<User>,
    info: Option<Bytes>,
    announce: bool,
    is_present: bool,
    /// The owner under which it was sent last.
    owner: NodeId,
    /// The number of the last change. Results of earlier changes are ignored.
    change: u64,
    /// Redis has taken the session's presence at some time.
    was_written: bool,
    /// It was sent at some time, so Redis may have taken it.
    was_sent: bool,
    /// Members get no event when it is written again.
    is_silent: bool,
    /// The [`Rewrite`] for which it was marked last.
    rewrite: u32,
    /// It left while Redis was away, and Redis has forgotten that it was present. It is written as present once more,
    /// silently, so that its leave is a change that can be announced.
    is_returning: bool,
}

/// A change that is to be sent, with its number.
type NumberedChange = (u64, PresenceChange);

impl Roster {
    pub(crate) fn new(owner: NodeId) -> Self {
        let state = RosterState {
            owner,
            entries: IndexMap::new(),
            rewrite: Rewrite { number: 0, loss: Loss::Forgotten },
            marking: Walk::default(),
            unwritten: HashSet::new(),
            changes: 0,
            deferred_leaves: Vec::new(),
        };
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn owner(&self) -> NodeId {
        self.state.lock().owner
    }

    /// Records a change and sends it.
    pub(crate) fn update(
        self: &Arc<Self>,
        room: &Room,
        update: PresenceUpdate,
        to: &Publisher,
    ) -> oneshot::Receiver<Written> {
        let (done, written) = oneshot::channel();
        let mut state = self.state.lock();
        let refused = match state.record(room, update) {
            Some(change) => self.send(&mut state, change, done, to),
            None => {
                let _ = done.send(Ok(()));
                None
            }
        };
        // Completing takes the lock.
        drop(state);
        if let Some((command, why)) = refused {
            command.complete(Err(why));
        }
        written
    }

    /// Sends at most `most` changes that were not written so far and can be sent now.
    pub(crate) fn send_unwritten(
        self: &Arc<Self>,
        most: usize,
        publisher: impl Fn(&Room) -> Arc<Publisher>,
    ) -> Vec<oneshot::Receiver<Written>> {
        let (mut results, mut refused) = (Vec::new(), Vec::new());
        let mut state = self.state.lock();
        state.mark();
        // Changes whose master is away must not keep the others from theirs.
        let to = |membership: &Membership| (membership.clone(), publisher(&membership.room));
        let can_send = |(_, to): &(Membership, Arc<Publisher>)| to.status.is_up();
        let next: Vec<_> = state.unwritten.iter().map(to).filter(can_send).take(most).collect();
        for (membership, to) in next {
            state.unwritten.remove(&membership);
            let Some(change) = state.next_change(membership) else { continue };
            let (done, written) = oneshot::channel();
            results.push(written);
            refused.extend(self.send(&mut state, change, done, &to));
        }
        // Completing takes the lock.
        drop(state);
        refused.into_iter().for_each(|(command, why): RefusedCommand| command.complete(Err(why)));
        results
    }

    /// Sends a change. The caller completes a refused one after it has released the lock.
    fn send(
        self: &Arc<Self>,
        state: &mut RosterState,
        change: NumberedChange,
        done: oneshot::Sender<Written>,
        to: &Publisher,
    ) -> Option<RefusedCommand> {
        let membership = change.1.membership.clone();
        let refused = to.send(WriteCommand::Presence(self.command(change, done)));
        if let Some(entry) = state.entries.get_mut(&membership) {
            entry.was_sent |= refused.is_none();
        }
        refused
    }

    fn command(self: &Arc<Self>, change: NumberedChange, done: oneshot::Sender<Written>) -> PresenceCommand {
        let (number, change) = change;
        let (roster, membership) = (Arc::clone(self), change.membership.clone());
        let completion = move |result: Written| {
            roster.state.lock().settle(&membership, number, result.is_ok());
            let _ = done.send(result); // the caller may have stopped waiting
        };
        PresenceCommand::new(change, Box::new(completion))
    }

    /// Takes a new owner. Every entry is to be written again under it.
    pub(crate) fn rewrite(&self, loss: Loss) {
        let mut state = self.state.lock();
        state.owner = NodeId::random();
        state.rewrite = Rewrite { number: state.rewrite.number + 1, loss };
        state.marking = Walk::over(&state.entries);
    }

    /// Counts a regular heartbeat: deferred leaves that have waited for [`LEAVE_ROUNDS`] of them are to be written now.
    pub(crate) fn end_round(&self) {
        let mut state = self.state.lock();
        let RosterState { entries, unwritten, deferred_leaves, .. } = &mut *state;
        deferred_leaves.retain_mut(|DeferredLeave { membership, rounds_left }| {
            *rounds_left -= 1;
            if *rounds_left == 0 && entries.get(membership).is_some_and(|entry| !entry.is_present) {
                unwritten.insert(membership.clone());
            }
            *rounds_left > 0
        });
    }

    /// Records that every session leaves.
    pub(crate) fn leave_all(&self) {
        let mut state = self.state.lock();
        let RosterState { entries, unwritten, marking, rewrite, .. } = &mut *state;
        *marking = Walk::default();
        for (membership, entry) in entries.iter_mut() {
            entry.rewrite = rewrite.number;
            (entry.is_present, entry.is_returning, entry.is_silent) = (false, false, false);
            unwritten.insert(membership.clone());
        }
    }

    /// Whether Redis has every leave, and no session is present.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().entries.is_empty()
    }
}

impl RosterEntry {
    /// Marks the entry for the latest rewrite; `false` if it is or was made since.
    fn mark(&mut self, Rewrite { number, loss }: Rewrite) -> bool {
        if replace(&mut self.rewrite, number) == number {
            return false;
        }
        self.is_silent = loss == Loss::Forgotten && self.was_written;
        self.is_returning = self.is_silent && !self.is_present;
        true
    }
}

impl RosterState {
    /// Marks the next entries that have to be written again.
    fn mark(&mut self) {
        let Self { entries, unwritten, marking, rewrite, .. } = self;
        for _ in 0..MARKED {
            let Some((membership, entry)) = marking.next(entries) else { return };
            if entry.mark(*rewrite) {
                unwritten.insert(membership.clone());
            }
        }
    }

    /// Records a change and returns it; `None` if Redis does not need it.
    fn record(&mut self, room: &Room, update: PresenceUpdate) -> Option<NumberedChange> {
        match update {
            PresenceUpdate::Enter { session, user, info, announce } => {
                let membership = Membership { room: room.clone(), session };
                let was = self.entries.get_mut(&membership).map(|entry| {
                    entry.mark(self.rewrite);
                    &*entry
                });
                let entry = RosterEntry {
                    user,
                    info,
                    announce,
                    is_present: true,
                    owner: self.owner,
                    change: 0,
                    was_written: was.is_some_and(|entry| entry.was_written),
                    was_sent: was.is_some_and(|entry| entry.was_sent),
                    is_silent: was.is_some_and(|entry| entry.is_silent),
                    is_returning: false,
                    rewrite: self.rewrite.number,
                };
                self.entries.insert(membership.clone(), entry);
                self.next_change(membership)
            }
            // No node keeps a lease: `Deployment` writes it.
            PresenceUpdate::Lease { .. } | PresenceUpdate::EndLease { .. } => None,
            PresenceUpdate::Leave { session, announce } => {
                let membership = Membership { room: room.clone(), session };
                let entry = self.entries.get_mut(&membership)?;
                if !entry.was_sent {
                    // Redis was too busy to get the session's arrival, so it need not get the leave either.
                    self.entries.swap_remove(&membership);
                    self.unwritten.remove(&membership);
                    return None;
                }
                entry.mark(self.rewrite);
                (entry.is_present, entry.announce, entry.is_silent) = (false, announce, false);
                self.next_change(membership)
            }
        }
    }

    /// The change after which Redis has the entry as it is now.
    fn next_change(&mut self, membership: Membership) -> Option<NumberedChange> {
        let entry = self.entries.get_mut(&membership)?;
        entry.mark(self.rewrite);
        self.changes += 1;
        entry.change = self.changes;
        let is_present = entry.is_present || entry.is_returning;
        // A leave is sent under the owner of the entry that it removes.
        if is_present {
            entry.owner = self.owner;
        }
        let enter = is_present.then(|| {
            let who = entry.user.clone().map_or(Who::Session(membership.session), Who::User);
            let payload = envelope::presence_payload(&who, entry.info.as_deref());
            PresenceEntry { payload, announce_leave: entry.announce, lease: None }
        });
        self.unwritten.remove(&membership);
        let announce = entry.announce && !entry.is_silent;
        Some((entry.change, PresenceChange { membership, owner: entry.owner, enter, announce }))
    }

    /// Takes the result of a change.
    fn settle(&mut self, membership: &Membership, number: u64, is_written: bool) {
        let Some(entry) = self.entries.get_mut(membership) else { return };
        if entry.change != number {
            return;
        }
        if !is_written {
            self.unwritten.insert(membership.clone());
        } else if entry.is_returning {
            (entry.is_returning, entry.is_silent) = (false, false);
            self.deferred_leaves.push(DeferredLeave { membership: membership.clone(), rounds_left: LEAVE_ROUNDS });
        } else if entry.is_present {
            (entry.was_written, entry.is_silent) = (true, false);
        } else {
            self.entries.swap_remove(membership);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionId;

    fn enter(user: &str) -> PresenceUpdate {
        PresenceUpdate::Enter {
            session: SessionId(*b"session-0001"),
            user: Some(User::new(user)),
            info: None,
            announce: true,
        }
    }

    const LEAVE: PresenceUpdate = PresenceUpdate::Leave { session: SessionId(*b"session-0001"), announce: true };

    #[test]
    fn the_result_of_an_earlier_change_is_ignored() {
        let roster = Roster::new(NodeId(1));
        let mut state = roster.state.lock();
        let room = Room::parse("a").unwrap();
        let (arrival, PresenceChange { membership, .. }) = state.record(&room, enter("ann")).unwrap();
        state.entries.get_mut(&membership).unwrap().was_sent = true;
        let (leave, _) = state.record(&room, LEAVE).unwrap();
        state.settle(&membership, arrival, false);
        assert!(state.unwritten.is_empty(), "the later change is on its way");
        state.settle(&membership, leave, false);
        assert_eq!(state.unwritten.len(), 1);
        let (again, change) = state.next_change(membership.clone()).unwrap();
        assert!(change.enter.is_none() && change.announce);
        state.settle(&membership, again, true);
        assert!(state.entries.is_empty() && state.unwritten.is_empty());
    }

    #[test]
    fn what_redis_forgot_is_written_again_silently_and_what_it_never_had_is_announced() {
        let roster = Roster::new(NodeId(1));
        let rooms = ["a", "b"].map(|name| Room::parse(name).unwrap());
        let changes = rooms.each_ref().map(|room| roster.state.lock().record(room, enter("ann")).unwrap());
        let (number, change) = &changes[0];
        roster.state.lock().settle(&change.membership, *number, true);
        for (loss, announce) in [(Loss::Forgotten, [false, true]), (Loss::Swept, [true, true])] {
            roster.rewrite(loss);
            for ((_, change), announce) in changes.iter().zip(announce) {
                let mut state = roster.state.lock();
                let (_, again) = state.next_change(change.membership.clone()).unwrap();
                assert_eq!(
                    (again.announce, again.owner),
                    (announce, state.owner),
                    "{loss:?} in {}",
                    change.membership.room
                );
                assert_ne!(again.owner, NodeId(1));
            }
        }
    }

    /// The roster used to keep a million joins and leaves that Redis was too busy for, and wrote them long after.
    #[test]
    fn a_session_that_leaves_before_its_arrival_was_sent_is_forgotten() {
        let roster = Arc::new(Roster::new(NodeId(1)));
        let room = Room::parse("a").unwrap();
        let arrival = roster.state.lock().record(&room, enter("ann")).unwrap();
        roster.command(arrival, oneshot::channel().0).complete(Err(BrokerError::Overloaded));
        assert!(roster.state.lock().record(&room, LEAVE).is_none());
        assert!(roster.is_empty() && roster.state.lock().unwritten.is_empty());
    }

    /// Everything was marked at once, under the lock that shards wait for.
    #[test]
    fn a_roster_was_marked_whole_under_the_lock() {
        let roster = Roster::new(NodeId(1));
        let rooms: Vec<Room> = (0..=MARKED).map(|n| Room::parse(&format!("r{n}")).unwrap()).collect();
        for room in &rooms {
            let (number, change) = roster.state.lock().record(room, enter("ann")).unwrap();
            roster.state.lock().settle(&change.membership, number, true);
        }
        roster.rewrite(Loss::Forgotten);
        let mut state = roster.state.lock();
        assert!(state.unwritten.is_empty());
        // One that joins again meanwhile is not written twice.
        let (_, again) = state.record(&rooms[0], enter("ann")).unwrap();
        assert!(!again.announce && again.owner == state.owner);
        state.mark();
        assert_eq!(state.unwritten.len(), MARKED);
        state.mark();
        assert_eq!(state.unwritten.len(), MARKED, "all but the one that has been written");
    }

    #[test]
    fn the_leave_of_an_unknown_session_changes_nothing() {
        let roster = Roster::new(NodeId(1));
        assert!(roster.state.lock().record(&Room::parse("a").unwrap(), LEAVE).is_none());
        assert!(roster.is_empty() && roster.state.lock().unwritten.is_empty());
    }
}
