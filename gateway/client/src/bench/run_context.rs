//! What all connections of a load run share: its options, scoreboard, clock and scratch buffer, and the wakers of the
//! publishers. Everything runs on one thread; no cell is borrowed across an await.

use super::{link::SCRATCH_BYTES, options::BenchOptions, scoreboard::Scoreboard};
use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;

/// The shared state of a run.
#[derive(Debug)]
pub(super) struct RunContext {
    pub(super) options: BenchOptions,
    pub(super) scoreboard: RefCell<Scoreboard>,
    /// All links read into it, one after the other.
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) clock: Clock,
    /// One per publisher: notified when it may have something to send. The pacer's thread notifies them too.
    pub(super) wakers: Vec<Arc<Notify>>,
    /// Why the run cannot go on.
    failure: RefCell<Option<String>>,
}

impl RunContext {
    pub(super) fn new(options: BenchOptions) -> Self {
        let clock = Clock::new();
        // The microsecond of the start tells two runs in the same rooms apart.
        let run = (clock.now_ns() / 1000) as u32;
        Self {
            scoreboard: RefCell::new(Scoreboard::new(&options, run)),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            clock,
            wakers: (0..options.publishers).map(|_| Arc::default()).collect(),
            failure: RefCell::new(None),
            options,
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
    pub(super) fn wake(&self, publisher: Option<usize>) {
        if let Some(waker) = publisher.and_then(|publisher| self.wakers.get(publisher)) {
            waker.notify_one();
        }
    }
}

/// Nanoseconds since 1970 that never go back. The wall clock is read once, so that the stamps of several runs on one machine
/// compare; from then on the monotonic clock counts.
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
