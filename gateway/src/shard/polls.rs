//! Rooms that polls watch. They are followed like rooms with members, and for a while after the poll, so that the next
//! poll is answered from what this shard knows. A poll is no member: nothing is sent to it; it is woken and looks.
//! Called by `transport::poll`.

use super::{
    Shard,
    room::{RoomEntry, RoomRef},
    rooms::Linger,
};
use crate::{policy::class::Class, session::Hold, time::unix_ms};
use fanfare_broker::{BrokerError, Cursor, HistoryQuery, Page, Position, Publication, Room};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The time between two checks whether the backplane is up and the node drains.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The space that is left for answers to polls is enough for this many of them.
const ANSWERS_MIN: usize = 8;

/// A loss of the backplane that is shorter is not told to waiting polls.
const AWAY_AFTER: Duration = Duration::from_millis(1_500);

/// A room that a poll watches; the shard follows the room for as long as this lives.
pub(crate) struct Watch {
    shard: Rc<Shard>,
    room: RoomRef,
    /// The slot among the polls that the room wakes.
    slot: usize,
}

/// What a shard knows of the messages after a cursor.
#[derive(Debug)]
pub(crate) enum Look {
    /// The subscription is not confirmed, so the room's cursor is not known yet.
    NotYet,
    /// No cursor was given: the room's present one.
    Head(Cursor),
    Nothing,
    Messages(Vec<Publication>),
    /// The cursor lies before the messages that this shard keeps, or in another epoch.
    InHistory,
    /// The cursor lies ahead of what has been delivered here.
    Ahead,
}

impl Shard {
    /// Space for one more answer to a poll: at most so many bytes of messages, and what counts them. The more answers are
    /// on their way, the smaller the next one is; what does not fit comes with the client's next poll.
    /// An error: there is no space left.
    pub(crate) fn answer_space(&self, most: usize) -> Result<(usize, Hold), BrokerError> {
        let answers = &self.state.borrow().outgoing.answers;
        match self.node.shard_answer_bytes().saturating_sub(answers.total()) {
            0 => Err(BrokerError::Overloaded),
            left => Ok((most.min(left / ANSWERS_MIN), answers.hold(0))),
        }
    }

    /// Begins to watch a room. `wake` is notified of each message from then on.
    /// An error: this shard follows as many rooms for polls as it may.
    pub(crate) fn watch(self: &Rc<Self>, room: &Room, class: Class, wake: &Rc<Notify>) -> Result<Watch, BrokerError> {
        let state = &mut *self.state.borrow_mut();
        if state.rooms.find(room.as_str()).is_none() && !state.rooms.may_watch() {
            return Err(BrokerError::Overloaded);
        }
        let room = state.followed_room(room, class);
        let entry = state.rooms.resolve(room).ok_or(BrokerError::Unavailable)?;
        entry.occupants += 1;
        let slot = entry.parked.get_or_insert_default().insert(Rc::clone(wake));
        Ok(Watch { shard: Rc::clone(self), room, slot })
    }

    /// Wakes the waiting polls that are to be answered early: all of them when the node begins to drain, and those of
    /// rooms whose backplane has been away for too long. Refuses what cannot wait for the backplane. Never ends.
    pub(crate) async fn watch_surroundings(self: Rc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut is_draining = false;
        let drain = self.node.drain.begun();
        tokio::pin!(drain);
        loop {
            tokio::select! {
                () = &mut drain, if !is_draining => {
                    is_draining = true;
                    self.state.borrow().rooms.all().for_each(RoomEntry::wake_polls);
                }
                _ = looks.tick() => {}
            }
            if self.node.broker.status().up {
                self.away_since.set(None);
                continue;
            }
            self.away_since.set(self.away_since.get().or(Some(Instant::now())));
            let state = &mut *self.state.borrow_mut();
            let waits = |entry: &&RoomEntry| entry.parked.is_some() || !entry.waiting.is_empty();
            let mut joins = Vec::new();
            for (room, entry) in state.rooms.all_with_refs().filter(|(_, entry)| waits(entry)) {
                let Some(why) = self.away(&entry.name) else { continue };
                // A poll that is woken for this is answered, so each is woken once.
                entry.wake_polls();
                joins.push((room, why));
            }
            joins.into_iter().for_each(|(room, why)| state.refuse_waiting(room, &why));
        }
    }

    /// Why the backplane of a room is away, if that has been so for longer than a connection takes to be made again. Until
    /// then polls wait on, as members of other transports do.
    pub(crate) fn away(&self, room: &Room) -> Option<BrokerError> {
        let is_long = self.away_since.get().is_some_and(|since| since.elapsed() > AWAY_AFTER);
        self.node.broker.availability(room).err().filter(|_| is_long)
    }
}

impl Watch {
    /// What this shard knows of the messages after `since`, without asking the broker.
    pub(crate) fn look(&self, since: Option<Cursor>) -> Look {
        let state = &mut *self.shard.state.borrow_mut();
        let Some(entry) = state.rooms.resolve(self.room) else { return Look::NotYet };
        let Some(at) = entry.feed.position().map(Position::cursor) else { return Look::NotYet };
        match since {
            None => Look::Head(at),
            Some(since) if since == at => Look::Nothing,
            Some(since) if since.epoch == at.epoch && since.offset > at.offset => Look::Ahead,
            Some(since) => match entry.recent_after(since) {
                Some(missed) => Look::Messages(missed.cloned().collect()),
                None => Look::InHistory,
            },
        }
    }

    /// Why the shard does not know yet where the room stands.
    pub(crate) fn refusal(&self) -> BrokerError {
        self.shard.room(self.room, |entry| entry.refusal.clone()).unwrap_or(BrokerError::Unavailable)
    }

    pub(crate) async fn read(&self, query: HistoryQuery) -> Result<Page, BrokerError> {
        let page = self.shard.read_history(self.room, query).await.unwrap_or(Err(BrokerError::Unavailable))?;
        let state = &mut *self.shard.state.borrow_mut();
        if let Some(entry) = state.rooms.resolve(self.room) {
            // A client from another node may know of an epoch that has not reached this shard. Only then the page is
            // ahead of the feed for sure; messages of the same epoch may be on their way.
            let is_behind = entry.feed.position().is_some_and(|at| at.cursor().epoch != page.head.epoch);
            if let Some(since) = is_behind.then(|| entry.feed.on_head(page.head)).flatten() {
                state.start_catch_up(self.room, since);
            }
        }
        Ok(page)
    }

    /// For how long nothing has been published, as far as this shard knows; milliseconds.
    pub(crate) fn idle_ms(&self) -> u64 {
        let now_ms = self.shard.clock.now_ms();
        self.shard.room(self.room, |entry| (entry.ring.last_ts_ms(), entry.made_ms)).map_or(0, |room| match room {
            (Some(ts_ms), _) => unix_ms().saturating_sub(ts_ms),
            (None, made_ms) => u64::from(now_ms.wrapping_sub(made_ms)),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let state = &mut *self.shard.state.borrow_mut();
        let Some(entry) = state.rooms.resolve(self.room) else { return };
        if let Some(parked) = &mut entry.parked {
            parked.try_remove(self.slot);
            if parked.is_empty() {
                entry.parked = None;
            }
        }
        state.drop_occupant(self.room.index, Linger::UntilNextPoll);
    }
}
