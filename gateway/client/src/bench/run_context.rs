//! What all connections of a load run share: its options, nodes, scoreboard, clock and scratch buffer, and the wakers
//! of the publishers. Everything runs on one thread; no cell is borrowed across an await.

use super::{
    link::{BenchNode, SCRATCH_BYTES},
    options::BenchOptions,
    scoreboard::Scoreboard,
};
use crate::output::Failure;
use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Notify;

/// The shared state of a run.
pub(super) struct RunContext {
    pub(super) options: BenchOptions,
    /// The gateway's nodes; members are spread over them.
    pub(super) nodes: Vec<BenchNode>,
    /// The node that the publishers use, if it is not the first.
    pub(super) publish_node: Option<BenchNode>,
    pub(super) scoreboard: RefCell<Scoreboard>,
    /// All links read into it, one after the other.
    pub(super) scratch: RefCell<Vec<u8>>,
    /// Notified when a member has joined its room.
    pub(super) joined: Notify,
    /// One per publisher: notified when it may have something to send. The pacer's thread notifies them too.
    pub(super) wakers: Vec<Arc<Notify>>,
    /// Why the run cannot go on.
    failure: RefCell<Option<String>>,
    begun: Instant,
    begun_ns: u64,
}

impl RunContext {
    /// Resolves the nodes' names.
    pub(super) async fn new(options: BenchOptions) -> Result<Self, Failure> {
        let mut nodes = Vec::new();
        for node in options.nodes() {
            nodes.push(BenchNode::find(&node).await?);
        }
        let publish_node = match options.publish_node() {
            Some(node) => Some(BenchNode::find(&node).await?),
            None => None,
        };
        let begun = Instant::now();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        // The microsecond of the start tells two runs in the same rooms apart.
        let run = since_1970.as_micros() as u32;
        Ok(Self {
            nodes,
            publish_node,
            scoreboard: RefCell::new(Scoreboard::new(&options, run)),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            joined: Notify::new(),
            wakers: (0..options.publishers).map(|_| Arc::default()).collect(),
            failure: RefCell::new(None),
            begun,
            begun_ns: since_1970.as_nanos() as u64,
            options,
        })
    }

    /// Nanoseconds since 1970 that never go back. The wall clock is read once, so that the stamps of several runs on
    /// one machine compare; from then on the monotonic clock counts.
    pub(super) fn now_ns(&self) -> u64 {
        self.begun_ns + self.begun.elapsed().as_nanos() as u64
    }

    /// Ends the run; the first reason stays.
    pub(super) fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
    }

    /// Why the run cannot go on.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub(super) fn wake(&self, publisher: Option<usize>) {
        if let Some(waker) = publisher.and_then(|publisher| self.wakers.get(publisher)) {
            waker.notify_one();
        }
    }
}
