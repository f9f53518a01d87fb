//! Fills holes in a room's deliveries from history, until the feed is in sequence again. Members are told of a gap if
//! history no longer has the messages. [`Retry`] is the wait between two attempts of a catch-up or a join.

use super::{Shard, State, room::RoomRef};
use crate::protocol::command::HISTORY_LIMIT_MAX;
use fanfare_broker::{Cursor, HistoryQuery, Page, Purpose};
use std::{rc::Rc, time::Duration};

/// The wait after the first failed attempt, and the longest wait.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// How often a read may fail for another reason than that the backplane is away. The waits in between add up to 7 s.
const FAILURES_MAX: u32 = 6;

impl State {
    /// Starts to read the hole that the room's feed has found after `since`.
    pub(super) fn start_catch_up(&self, room: RoomRef, since: Cursor) {
        self.spawn(|shard| shard.catch_up(room, since));
    }

    /// Delivers a page of history, or what there is without one; returns the cursor to read on from, unless the feed is
    /// in sequence again.
    fn fill(&mut self, room: RoomRef, page: Option<Page>) -> Option<Cursor> {
        let feed = &mut self.rooms.resolve(room)?.feed;
        let filled = match page {
            Some(page) => feed.on_page(page),
            None => feed.give_up(),
        };
        let metrics = &self.node.metrics;
        if filled.gap.is_some() { &metrics.gaps_told } else { &metrics.gaps_filled }.inc();
        self.pass(|pass| {
            if let Some(gap) = filled.gap {
                pass.append_gap(room.index, gap);
            }
            filled.deliver.into_iter().for_each(|publication| pass.append(room.index, publication));
        });
        filled.again
    }
}

impl Shard {
    async fn catch_up(self: Rc<Self>, room: RoomRef, mut since: Cursor) {
        let (mut retry, mut failures) = (Retry::new(), 0);
        loop {
            let query = HistoryQuery { since: Some(since), limit: HISTORY_LIMIT_MAX, purpose: Purpose::CatchUp };
            let page = match self.read_history(room, query).await {
                None => return,
                Some(Ok(page)) => {
                    retry.reset();
                    failures = 0;
                    Some(page)
                }
                Some(Err(why)) => {
                    tracing::debug!(%why, "cannot catch up yet");
                    failures += u32::from(!why.is_temporary());
                    if failures < FAILURES_MAX {
                        retry.wait().await;
                        continue;
                    }
                    None
                }
            };
            let Some(again) = self.state.borrow_mut().fill(room, page) else { return };
            since = again;
        }
    }
}

/// Waits longer each time that the broker fails. It never gives up: the caller stops when the room is no longer wanted.
#[derive(Debug)]
pub(super) struct Retry {
    next: Duration,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// An attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// An attempt failed: waits before the next one.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }

    fn step(&mut self) -> Duration {
        let later = (self.next * 2).min(LAST);
        std::mem::replace(&mut self.next, later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_two_seconds_and_starts_again() {
        let mut retry = Retry::new();
        let waits: Vec<_> = (0..7).map(|_| retry.step().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        retry.reset();
        assert_eq!(retry.step(), FIRST);
    }
}
