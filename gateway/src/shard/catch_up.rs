//! Fills holes in a room's deliveries from history, until the feed is in sequence again. Members are told of a gap if
//! history no longer has the messages. [`Retry`] is the wait between two attempts of a catch-up or a join.

use super::{Shard, State, room::RoomRef};
use crate::{protocol::command::HISTORY_LIMIT_MAX, random::random_below};
use fanfare_broker::{Cursor, HistoryQuery, Page, Purpose};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// The wait after the first failed attempt, and the longest wait.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// Messages of the first page, whose sizes are not known: 2 MiB if each is as large as messages may be by default.
const PAGE_FIRST: usize = 32;
/// Payload bytes of each later page, roughly.
const PAGE_BYTES: usize = 1 << 20;
/// Payload bytes that are delivered at a time.
const PART_BYTES: usize = 64 << 10;
/// How long the sockets may take for one part; then the next one is delivered all the same.
const PART_TIME: Duration = Duration::from_millis(250);

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
        let (mut retry, mut failures, mut limit) = (Retry::new(), 0, PAGE_FIRST);
        let metrics = &self.node.metrics;
        loop {
            let query = HistoryQuery { since: Some(since), limit, purpose: Purpose::CatchUp };
            let again = match self.read_history(room, query).await {
                None => return,
                Some(Ok(page)) => {
                    retry.reset();
                    failures = 0;
                    match page.gap {
                        None => metrics.gaps_filled.inc(),
                        Some(_) if page.from.epoch == since.epoch => metrics.gaps_told.inc(),
                        Some(_) => metrics.gaps_epoch.inc(),
                    }
                    limit = next_limit(&page);
                    self.fill_in_parts(room, page).await
                }
                Some(Err(why)) => {
                    tracing::debug!(%why, "cannot catch up yet");
                    failures += u32::from(!why.is_temporary());
                    if failures < FAILURES_MAX {
                        retry.wait().await;
                        continue;
                    }
                    metrics.gaps_told.inc();
                    self.state.borrow_mut().fill(room, None)
                }
            };
            let Some(again) = again else { return };
            since = again;
        }
    }

    /// Delivers a page, and lets the members' sockets take one part before the next is delivered. So a large hole does
    /// not fill the outboxes at once, and other rooms are served in between.
    async fn fill_in_parts(&self, room: RoomRef, mut page: Page) -> Option<Cursor> {
        loop {
            let part = page.take_oldest(PART_BYTES);
            let again = self.state.borrow_mut().fill(room, Some(part));
            if page.publications.is_empty() {
                return again;
            }
            again?;
            let began = Instant::now();
            while !self.state.borrow().outgoing.is_idle() && began.elapsed() < PART_TIME {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// How many messages to read next: by the size of those of this page, so that the next page is not much larger than
/// [`PAGE_BYTES`].
fn next_limit(page: &Page) -> usize {
    let bytes: usize = page.publications.iter().map(|publication| publication.payload.len()).sum();
    let mean = bytes / page.publications.len().max(1);
    (PAGE_BYTES / mean.max(1)).clamp(1, HISTORY_LIMIT_MAX)
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

    /// An attempt failed: waits before the next one; up to a quarter less than it could, so that those who fail in one
    /// moment do not try again in one moment.
    pub(super) async fn wait(&mut self) {
        let wait = self.step();
        let less = random_below(wait.as_millis() as u64 / 4);
        tokio::time::sleep(wait - Duration::from_millis(less)).await;
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
