//! What all connections of a load run share: the order, the board, the clock, the scratch buffer, and the bells that wake
//! publishers. Everything runs on one thread; a cell is never borrowed across an await.

use super::{board::Board, link::SCRATCH_BYTES, options::Bench};
use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;

/// A run's shared state.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) order: Bench,
    pub(super) board: RefCell<Board>,
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) clock: Clock,
    /// One per publisher: rung when it may have something to send. The pacer's thread rings too.
    pub(super) bells: Vec<Arc<Notify>>,
    /// Why the run cannot go on.
    failure: RefCell<Option<String>>,
}

impl Stage {
    pub(super) fn new(order: Bench) -> Self {
        let clock = Clock::new();
        // Two runs at a time have another microsecond each.
        let run = (clock.now_ns() / 1000) as u32;
        Self {
            board: RefCell::new(Board::new(&order, run)),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            clock,
            bells: (0..order.publishers).map(|_| Arc::default()).collect(),
            failure: RefCell::new(None),
            order,
        }
    }

    /// Ends the run; the first reason stays.
    pub(super) fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
    }

    /// Why the run cannot go on.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Wakes a publisher.
    pub(super) fn ring(&self, publisher: Option<usize>) {
        if let Some(bell) = publisher.and_then(|publisher| self.bells.get(publisher)) {
            bell.notify_one();
        }
    }
}

/// Nanoseconds since 1970 that never go back: the wall clock is asked once, so that stamps of several runs on one machine
/// compare, and the monotonic clock from then on.
#[derive(Debug)]
pub(super) struct Clock {
    begun: Instant,
    begun_ns: u64,
}

impl Clock {
    fn new() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { begun: Instant::now(), begun_ns: since_1970.as_nanos() as u64 }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.begun_ns + self.begun.elapsed().as_nanos() as u64
    }
}
