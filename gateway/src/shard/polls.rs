//! Rooms that polls look at: followed like rooms with members, for as long as a poll watches and some time after, so that
//! the next one is answered from what this shard knows. A poll is no member: nothing is sent to it, it is woken and
//! looks. Called by `transport::poll`.

use super::{Shard, feed::Step, leave::Linger, rooms::RoomKey};
use crate::{policy::class::Class, time::unix_ms};
use fanfare_broker::{BrokerError, Cursor, HistoryQuery, Page, Position, Publication, Room};
use std::{rc::Rc, time::Duration};
use tokio::sync::Notify;

/// Between two looks at how the backplane and the node are.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A room that a poll looks at; followed at least as long as this lives.
pub(crate) struct Watch {
    shard: Rc<Shard>,
    key: RoomKey,
    /// Its place among those that are woken.
    slot: usize,
}

/// What a shard knows of what comes after a place.
#[derive(Debug)]
pub(crate) enum Look {
    /// The backplane has not said yet where the room stands.
    NotYet,
    /// No place was given: this is where the room stands.
    Head(Cursor),
    Nothing,
    Messages(Vec<Publication>),
    /// The place lies further back than what this shard keeps, or in another epoch.
    InHistory,
    /// The place lies ahead of what has been delivered here.
    Ahead,
}

impl Shard {
    /// Begins to look at a room. `wake` hears of each message from then on.
    ///
    /// # Errors
    /// This shard follows as many rooms for polls as it may.
    pub(crate) fn watch(self: &Rc<Self>, room: &Room, class: Class, wake: &Rc<Notify>) -> Result<Watch, BrokerError> {
        let state = &mut *self.state.borrow_mut();
        if state.rooms.find(room.as_str()).is_none() && !self.may_watch(state) {
            return Err(BrokerError::Overloaded);
        }
        let (key, made) = state.rooms.find_or_make(room, self.now_ms(), || class);
        let mut watch = Watch { shard: Rc::clone(self), key: (key, 0), slot: 0 };
        if let Some(entry) = state.rooms.get_mut(key) {
            entry.occupants += 1;
            watch.key.1 = entry.generation;
            watch.slot = entry.parked.get_or_insert_default().insert(Rc::clone(wake));
        }
        if made {
            self.start_following(watch.key);
        }
        Ok(watch)
    }

    /// Wakes every poll that waits when the backplane goes, or this node is to: they have to do something. For ever.
    pub(crate) async fn watch_surroundings(self: Rc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut was_fine = true;
        loop {
            looks.tick().await;
            let is_fine = self.node.broker.status().up && !self.node.drain.is_draining();
            if was_fine && !is_fine {
                self.state.borrow().rooms.all().for_each(super::rooms::RoomEntry::wake_parked);
            }
            was_fine = is_fine;
        }
    }
}

impl Watch {
    /// What there is after `since`, without asking the broker.
    pub(crate) fn look(&self, since: Option<Cursor>) -> Look {
        let state = &mut *self.shard.state.borrow_mut();
        let Some(entry) = state.rooms.same(self.key) else { return Look::NotYet };
        let Some(at) = entry.feed.position().map(Position::cursor) else { return Look::NotYet };
        match since {
            None => Look::Head(at),
            Some(since) if since == at => Look::Nothing,
            Some(since) if since.epoch == at.epoch && since.offset > at.offset => Look::Ahead,
            Some(since) => match entry.ring_after(since) {
                Some(missed) => Look::Messages(missed.cloned().collect()),
                None => Look::InHistory,
            },
        }
    }

    /// A page of the room's history.
    ///
    /// # Errors
    /// The broker's.
    pub(crate) async fn read(&self, query: HistoryQuery) -> Result<Page, BrokerError> {
        let page = self.shard.read_history(self.key, query).await.unwrap_or(Err(BrokerError::Unavailable))?;
        let state = &mut *self.shard.state.borrow_mut();
        if let Some(entry) = state.rooms.same(self.key) {
            // Whoever comes back from elsewhere may know of an epoch that this shard has not heard of yet.
            let is_behind = entry.feed.position().is_some_and(|at| at.cursor().epoch != page.head.epoch);
            let step = if is_behind { entry.feed.on_head(page.head) } else { Step::Nothing };
            self.shard.apply(state, self.key.0, step);
        }
        Ok(page)
    }

    /// For how long nothing has been published, as far as this shard knows; milliseconds.
    pub(crate) fn idle_ms(&self) -> u64 {
        let state = &mut *self.shard.state.borrow_mut();
        let now_ms = self.shard.now_ms();
        state.rooms.same(self.key).map_or(0, |entry| match entry.last_ts_ms() {
            Some(ts_ms) => unix_ms().saturating_sub(ts_ms),
            None => u64::from(now_ms.wrapping_sub(entry.made_ms)),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let state = &mut *self.shard.state.borrow_mut();
        let Some(entry) = state.rooms.same(self.key) else { return };
        if let Some(parked) = &mut entry.parked {
            parked.try_remove(self.slot);
            if parked.is_empty() {
                entry.parked = None;
            }
        }
        self.shard.go(state, self.key.0, Linger::UntilNextPoll);
    }
}
