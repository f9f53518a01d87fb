//! This node's own attendances, remembered so that they reach Redis whatever happens to it: what could not be
//! written is written later, and what Redis has forgotten is written again.
//!
//! A change is noted here first and sent second, under one lock, so that Redis hears changes in the order in which
//! the roster had them. Nothing here waits.

use crate::redis::{
    commands::{Change, Maker, What},
    master::Store,
    routes::Routes,
    write::publisher::Publisher,
};
use crate::{BrokerError, NodeId, PresenceUpdate, Room, SessionId, User, Who, envelope};
use bytes::Bytes;
use redis::Cmd;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::oneshot;

/// Rounds of the keeper after which somebody who left unheard leaves again: by then the other nodes are back too (they
/// try at least every second) and have written their members, so that nobody is said to be gone who is still elsewhere.
const FAREWELL_ROUNDS: u32 = 5;

/// A session in a room.
type Place = (Room, SessionId);

/// Why everything has to be written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Redis has forgotten it; nobody was told that anybody left.
    Forgotten,
    /// Others took this node for dead and announced that its members left.
    Swept,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Roster {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Who answers for entries in Redis: a new one each time that they have to be written again, so that whoever
    /// sweeps the old one's cannot touch them.
    owner: NodeId,
    places: HashMap<Place, Entry>,
    /// What Redis does not know yet, and what is not on its way either.
    unwritten: HashSet<Place>,
    changes: u64,
    /// Who left unheard and was written once more: after so many rounds the leave is sent.
    farewells: Vec<(u32, Place)>,
}

#[derive(Debug)]
struct Entry {
    user: Option<User>,
    info: Option<Bytes>,
    announced: bool,
    present: bool,
    /// Under whom it was sent last.
    owner: NodeId,
    /// The last change; an answer to an earlier one settles nothing.
    change: u64,
    /// Redis has taken it at some time.
    written: bool,
    /// It was on its way to Redis at some time, which may have taken it.
    sent: bool,
    /// Members need not hear of it when it is written again.
    quiet: bool,
    /// It left while Redis was away, and Redis has forgotten that it was there: it is written as present once more, in
    /// silence, so that its leave is one that others can be told.
    returning: bool,
}

impl Roster {
    pub(crate) fn new(owner: NodeId) -> Self {
        let state =
            State { owner, places: HashMap::new(), unwritten: HashSet::new(), changes: 0, farewells: Vec::new() };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn owner(&self) -> NodeId {
        self.state().owner
    }

    /// Notes a change and sends it. The receiver hears when it is written; a failure means later.
    pub(crate) fn update_presence(
        self: &Arc<Self>,
        room: &Room,
        attendance: PresenceUpdate,
        to: &Publisher,
    ) -> oneshot::Receiver<Result<(), BrokerError>> {
        let (done, heard) = oneshot::channel();
        let refused = {
            let mut state = self.state();
            match state.note(room, attendance) {
                Some(unsent) => state.send(unsent.with(self, Some(done)), to),
                None => {
                    let _ = done.send(Ok(()));
                    None
                }
            }
        };
        // Only now: settling takes the lock.
        if let Some((attend, error)) = refused {
            attend.settle(Err(error));
        }
        heard
    }

    /// Sends what has not been written and can be now, at most so much. Says how to wait for it.
    pub(crate) fn send_unwritten(
        self: &Arc<Self>,
        most: usize,
        routes: &Routes,
    ) -> Vec<oneshot::Receiver<Result<(), BrokerError>>> {
        let (mut heard, mut refused) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            // Those whose master is away must not keep the others from theirs.
            let can = |(_, store): &(Place, Arc<Store>)| store.publisher.link.is_up();
            let stored = |place: &Place| (place.clone(), routes.store(&place.0));
            let places: Vec<_> = state.unwritten.iter().map(stored).filter(can).take(most).collect();
            for (place, store) in places {
                state.unwritten.remove(&place);
                let Some(attend) = state.again(place) else { continue };
                let (done, hear) = oneshot::channel();
                heard.push(hear);
                refused.extend(state.send(attend.with(self, Some(done)), &store.publisher));
            }
        }
        for (attend, error) in refused {
            attend.settle(Err(error));
        }
        heard
    }

    /// Everything has to be written again, under a new owner.
    pub(crate) fn rewrite(&self, loss: Loss) {
        let mut state = self.state();
        let State { owner, places, unwritten, .. } = &mut *state;
        *owner = NodeId::random();
        for (place, entry) in places.iter_mut() {
            entry.quiet = loss == Loss::Forgotten && entry.written;
            entry.returning = entry.quiet && !entry.present;
            unwritten.insert(place.clone());
        }
    }

    /// A round of the keeper has gone by: those whose time has come leave now.
    pub(crate) fn end_round(&self) {
        let mut state = self.state();
        let State { places, unwritten, farewells, .. } = &mut *state;
        farewells.retain_mut(|(rounds, place)| {
            *rounds -= 1;
            if *rounds == 0 && places.get(place).is_some_and(|entry| !entry.present) {
                unwritten.insert(place.clone());
            }
            *rounds > 0
        });
    }

    /// Everybody leaves.
    pub(crate) fn leave_all(&self) {
        let mut state = self.state();
        let State { places, unwritten, .. } = &mut *state;
        for (place, entry) in places.iter_mut() {
            (entry.present, entry.returning, entry.quiet) = (false, false, false);
            unwritten.insert(place.clone());
        }
    }

    /// Whether nobody is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().places.is_empty()
    }
}

impl State {
    fn note(&mut self, room: &Room, attendance: PresenceUpdate) -> Option<Unsent> {
        match attendance {
            PresenceUpdate::Enter { session, user, info, announce } => {
                let place = (room.clone(), session);
                let was = self.places.get(&place);
                let (written, sent) = was.map_or((false, false), |entry| (entry.written, entry.sent));
                let entry = Entry {
                    user,
                    info,
                    announced: announce,
                    present: true,
                    owner: self.owner,
                    change: 0,
                    written,
                    sent,
                    quiet: was.is_some_and(|entry| entry.quiet),
                    returning: false,
                };
                self.places.insert(place.clone(), entry);
                self.again(place)
            }
            PresenceUpdate::Leave { session, announce } => {
                let place = (room.clone(), session);
                let entry = self.places.get_mut(&place)?;
                if !entry.sent {
                    // Redis was too busy to hear of its coming: nobody has to hear of its going.
                    self.places.remove(&place);
                    self.unwritten.remove(&place);
                    return None;
                }
                (entry.present, entry.announced, entry.quiet) = (false, announce, false);
                self.again(place)
            }
        }
    }

    /// What to send for Redis to know how it stands now.
    fn again(&mut self, place: Place) -> Option<Unsent> {
        let entry = self.places.get_mut(&place)?;
        self.changes += 1;
        entry.change = self.changes;
        let here = entry.present || entry.returning;
        if here {
            entry.owner = self.owner;
        }
        let payload = here.then(|| {
            let who = entry.user.clone().map_or(Who::Session(place.1), Who::User);
            envelope::presence_payload(&who, entry.info.as_deref())
        });
        self.unwritten.remove(&place);
        let tell = entry.announced && !entry.quiet;
        let (owner, change, announced) = (entry.owner, entry.change, entry.announced);
        Some(Unsent { place, owner, change, payload, announced, tell })
    }

    /// Sends it. One that comes back was not taken.
    fn send(&mut self, attend: Attend, to: &Publisher) -> Option<(Attend, BrokerError)> {
        let place = attend.unsent.place.clone();
        let refused = to.update_presence(attend);
        if refused.is_none()
            && let Some(entry) = self.places.get_mut(&place)
        {
            entry.sent = true;
        }
        refused
    }

    fn settled(&mut self, place: &Place, change: u64, written: bool) {
        let Some(entry) = self.places.get_mut(place) else { return };
        if entry.change != change {
            return;
        }
        if !written {
            self.unwritten.insert(place.clone());
        } else if entry.returning {
            (entry.returning, entry.quiet) = (false, false);
            self.farewells.push((FAREWELL_ROUNDS, place.clone()));
        } else if entry.present {
            (entry.written, entry.quiet) = (true, false);
        } else {
            self.places.remove(place);
        }
    }
}

struct Unsent {
    place: Place,
    owner: NodeId,
    change: u64,
    payload: Option<Vec<u8>>,
    announced: bool,
    tell: bool,
}

impl Unsent {
    fn with(self, roster: &Arc<Roster>, done: Option<oneshot::Sender<Result<(), BrokerError>>>) -> Attend {
        Attend { unsent: self, roster: Some(Arc::clone(roster)), done }
    }
}

/// A change on its way to Redis. Dropped on the way it counts as unwritten.
pub(crate) struct Attend {
    unsent: Unsent,
    roster: Option<Arc<Roster>>,
    done: Option<oneshot::Sender<Result<(), BrokerError>>>,
}

impl Attend {
    pub(crate) fn room(&self) -> &Room {
        &self.unsent.place.0
    }

    pub(crate) fn command(&self, maker: &Maker) -> Cmd {
        let Unsent { place, owner, payload, announced, tell, .. } = &self.unsent;
        let what = match payload {
            Some(payload) => What::Enter { payload, announced: *announced },
            None => What::Leave,
        };
        maker.update_presence(&Change { room: &place.0, session: &place.1, owner: *owner, what, tell: *tell }, now_ms())
    }

    pub(crate) fn settle(mut self, outcome: Result<(), BrokerError>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<(), BrokerError>) {
        let Some(roster) = self.roster.take() else { return };
        roster.state().settled(&self.unsent.place, self.unsent.change, outcome.is_ok());
        if let Some(done) = self.done.take() {
            // Whoever asked may not want to know.
            let _ = done.send(outcome);
        }
    }
}

impl Drop for Attend {
    fn drop(&mut self) {
        self.end(Err(BrokerError::Unavailable));
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
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
    fn an_answer_to_an_earlier_change_settles_nothing() {
        let roster = Roster::new(NodeId(1));
        let mut state = roster.state();
        let room = Room::parse("a").unwrap();
        let came = state.note(&room, enter("ann")).unwrap();
        state.places.get_mut(&came.place).unwrap().sent = true;
        let left = state.note(&room, LEAVE).unwrap();
        state.settled(&came.place, came.change, false);
        assert!(state.unwritten.is_empty(), "the later change is on its way");
        state.settled(&left.place, left.change, false);
        assert_eq!(state.unwritten.len(), 1);
        let again = state.again(left.place).unwrap();
        assert!(again.payload.is_none() && again.tell);
        state.settled(&again.place, again.change, true);
        assert!(state.places.is_empty() && state.unwritten.is_empty());
    }

    #[test]
    fn what_redis_forgot_is_written_again_in_silence_but_what_it_never_had_is_told() {
        let roster = Roster::new(NodeId(1));
        let rooms = ["a", "b"].map(|name| Room::parse(name).unwrap());
        let unsent = rooms.each_ref().map(|room| roster.state().note(room, enter("ann")).unwrap());
        roster.state().settled(&unsent[0].place, unsent[0].change, true);
        for (loss, tell) in [(Loss::Forgotten, [false, true]), (Loss::Swept, [true, true])] {
            roster.rewrite(loss);
            for (unsent, tell) in unsent.iter().zip(tell) {
                let mut state = roster.state();
                let again = state.again(unsent.place.clone()).unwrap();
                assert_eq!((again.tell, again.owner), (tell, state.owner), "{loss:?} in {}", unsent.place.0);
                assert_ne!(again.owner, NodeId(1));
            }
        }
    }

    /// A million joins and leaves that Redis was too busy for were kept, and written long after.
    #[test]
    fn who_leaves_before_redis_could_be_told_of_the_coming_is_forgotten() {
        let roster = Arc::new(Roster::new(NodeId(1)));
        let room = Room::parse("a").unwrap();
        let came = roster.state().note(&room, enter("ann")).unwrap();
        came.with(&roster, None).settle(Err(BrokerError::Overloaded));
        assert!(roster.state().note(&room, LEAVE).is_none());
        assert!(roster.is_empty() && roster.state().unwritten.is_empty());
    }

    #[test]
    fn who_was_never_here_leaves_without_a_trace() {
        let roster = Roster::new(NodeId(1));
        assert!(roster.state().note(&Room::parse("a").unwrap(), LEAVE).is_none());
        assert!(roster.is_empty() && roster.state().unwritten.is_empty());
    }
}
