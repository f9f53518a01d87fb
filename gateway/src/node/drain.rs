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
pub(crate) enum NodePhase {
    Starting,
    /// The node serves, and takes new sessions.
    Ready,
    /// New sessions are refused, and the present ones are closed one after the other. Publishes are served.
    Draining,
}

/// Which phase the node is in, and who waits for the next one.
pub(crate) struct Drain {
    phase: watch::Sender<NodePhase>,
    is_behind_proxy: AtomicBool,
    pub(crate) metrics: Arc<Metrics>,
}

impl Drain {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { phase: watch::Sender::new(NodePhase::Starting), is_behind_proxy: AtomicBool::new(false), metrics }
    }

    /// Notes that clients come through a proxy, or that another machine (a balancer, Prometheus) uses one of the
    /// listeners. Either needs some seconds to notice that the node goes.
    pub(crate) fn note_proxy(&self) {
        if !self.is_behind_proxy() {
            self.is_behind_proxy.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a proxy, a balancer or Prometheus has used this node, as [`note_proxy`](Self::note_proxy) says.
    pub(crate) fn is_behind_proxy(&self) -> bool {
        self.is_behind_proxy.load(Ordering::Relaxed)
    }

    /// The node has begun to serve: it is ready, unless it drains already.
    pub(crate) fn start(&self) {
        let ready = |phase: &mut NodePhase| {
            if *phase == NodePhase::Starting {
                *phase = NodePhase::Ready;
            }
        };
        self.phase.send_modify(ready);
    }

    pub(crate) fn begin(&self) {
        self.metrics.drain_phase.set(1);
        self.phase.send_replace(NodePhase::Draining);
    }

    /// The last session has gone.
    pub(crate) fn finish(&self) {
        self.metrics.drain_phase.set(2);
    }

    pub(crate) fn phase(&self) -> NodePhase {
        *self.phase.borrow()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() == NodePhase::Draining
    }

    pub(crate) async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == NodePhase::Draining).await;
    }
}
