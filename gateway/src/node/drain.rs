//! The phases of a node's life: running, draining, drained. SIGTERM or `POST /drain` begins the drain; code that
//! behaves differently during a drain asks here. A drain cannot be undone.

use crate::node::metrics::Metrics;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// Whether the node drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// New sessions are refused, and the present ones are closed one after the other. Publishes are served.
    Draining,
}

/// Which phase the node is in, and who waits for the next one.
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    /// Whether the node has begun to serve.
    started: watch::Sender<bool>,
    has_front: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Drain {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            started: watch::Sender::new(false),
            has_front: AtomicBool::new(false),
            metrics,
        }
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

    /// The node has begun to serve: it is ready.
    pub(crate) fn start(&self) {
        self.started.send_replace(true);
    }

    /// Begins to drain; `false` if the node drains already.
    pub(crate) fn begin(&self) -> bool {
        self.metrics.drain_phase.set(1);
        self.phase.send_if_modified(|phase| std::mem::replace(phase, Phase::Draining) == Phase::Running)
    }

    /// The last session has gone.
    pub(crate) fn finish(&self) {
        self.metrics.drain_phase.set(2);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() == Phase::Draining
    }

    /// Whether new sessions may come to this node.
    pub(crate) fn is_ready(&self) -> bool {
        *self.started.borrow() && !self.is_draining()
    }

    /// Waits until draining begins.
    pub(crate) async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Draining).await;
    }
}
