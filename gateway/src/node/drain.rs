//! The node's way out: running, then draining, then drained. SIGTERM or `POST /drain` begins it; everybody who must
//! behave differently asks here. It never turns back.

use crate::node::metrics::Metrics;
use std::sync::Arc;
use tokio::sync::watch;

/// How far the way out has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// No new sessions; those there are leave one after the other. Publishes are served.
    Draining,
}

/// See the module's head.
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    /// Whether the node has begun to serve.
    started: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Drain {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { phase: watch::Sender::new(Phase::Running), started: watch::Sender::new(false), metrics }
    }

    /// Notes that the node serves: from here on it is ready.
    pub(crate) fn start(&self) {
        self.started.send_replace(true);
    }

    /// Begins to drain; `false` if that had happened before.
    pub(crate) fn begin(&self) -> bool {
        self.metrics.drain_phase.set(1);
        self.phase.send_if_modified(|phase| std::mem::replace(phase, Phase::Draining) == Phase::Running)
    }

    /// Notes that nothing is left.
    pub(crate) fn finish(&self) {
        self.metrics.drain_phase.set(2);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() == Phase::Draining
    }

    /// Whether new sessions are welcome here.
    pub(crate) fn is_ready(&self) -> bool {
        *self.started.borrow() && !self.is_draining()
    }

    /// Waits until draining begins.
    pub(crate) async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Draining).await;
    }
}
