//! The phases of a node's life: running, draining, drained. SIGTERM or `POST /drain` begins the drain; code that
//! behaves differently during a drain asks here. A drain cannot be undone.

use crate::node::metrics::Metrics;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// How far the node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    /// The node serves, and takes new sessions.
    Ready,
    /// New sessions are refused, and the present ones are closed one after the other. Publishes are served.
    Draining,
}

/// Which phase the node is in, and who waits for the next one.
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    has_front: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Drain {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { phase: watch::Sender::new(Phase::Starting), has_front: AtomicBool::new(false), metrics }
    }

    /// Notes that a proxy or another machine uses this node, on either listener: such a front needs some seconds to
    /// notice that the node goes.
    pub(crate) fn note_front(&self) {
        if !self.has_front() {
            self.has_front.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a proxy or another machine has used this node.
    pub(crate) fn has_front(&self) -> bool {
        self.has_front.load(Ordering::Relaxed)
    }

    /// The node has begun to serve: it is ready, unless it drains already.
    pub(crate) fn start(&self) {
        let ready = |phase: &mut Phase| {
            if *phase == Phase::Starting {
                *phase = Phase::Ready;
            }
        };
        self.phase.send_modify(ready);
    }

    pub(crate) fn begin(&self) {
        self.metrics.drain_phase.set(1);
        self.phase.send_replace(Phase::Draining);
    }

    /// The last session has gone.
    pub(crate) fn finish(&self) {
        self.metrics.drain_phase.set(2);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() == Phase::Draining
    }

    pub(crate) async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Draining).await;
    }
}
