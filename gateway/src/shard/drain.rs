//! How a shard's sessions end when the node drains: each client gets `reconnect` and a close frame. The closes are
//! spread evenly over the drain's window, so that the other nodes get a stream of reconnects and not a burst.

use super::{Shard, State, conn::SessionRef, sessions::CLOSING_MS};
use crate::{
    protocol::{close::CloseReason, event::Event},
    random::random_below,
};
use std::{rc::Rc, time::Duration};

/// The share of the window that is left, after the last session, for taking the node out of the cluster
/// (`Broker::close`).
const BROKER_SHARE: f64 = 0.05;
/// The share of the window that is left, after the last close frame, for that and for clients to go.
const LAST_CLIENTS_SHARE: f64 = 0.15;
/// The share of the window in which a waiting poll may notice the drain: the polls look every 250 ms, which is an
/// eighth of the shortest window, 2 s.
const POLLS_NOTICE_SHARE: f64 = 0.125;
/// The time between two steps; each step closes the sessions that are due.
const STEP: Duration = Duration::from_millis(20);
/// The hint in `reconnect` is at most this. Closes are spread over the window already; it parts the clients of one
/// step.
const AFTER_MS_MAX: u64 = 200;

impl Shard {
    /// Closes all sessions, spread over most of `window`, or faster if there are few. Returns when the last one is gone
    /// and the last HTTP request answered, or at the window's end.
    pub(crate) async fn drain(self: Rc<Self>, window: Duration) {
        let end = tokio::time::Instant::now() + window.mul_f64(1.0 - BROKER_SHARE);
        let window = window.mul_f64(1.0 - LAST_CLIENTS_SHARE);
        let total = self.state.borrow().outgoing.sessions.all_open().count();
        let steps = ((window.as_millis() / STEP.as_millis()) as usize).min(total).max(1);
        let mut ticks = tokio::time::interval(STEP);
        for step in 1..=steps {
            ticks.tick().await;
            self.state.borrow_mut().close_all_but(total - total * step / steps);
        }
        // Close frames go out as far as the sockets take them, also with no time left.
        for _ in 0..=total {
            self.flush_some();
        }
        // Clients need a moment to read the last close frames; the sockets of slow ones are cut by a timer. HTTP
        // requests and waiting polls are answered in their own time, which lies within the window.
        let closed = end.min(tokio::time::Instant::now() + Duration::from_millis(u64::from(CLOSING_MS)));
        let has_sessions = || self.state.borrow().outgoing.sessions.len() > 0;
        let is_busy = |now| (has_sessions() && now < closed) || self.requests() > 0;
        while is_busy(tokio::time::Instant::now()) && tokio::time::Instant::now() < end {
            ticks.tick().await;
        }
    }

    /// The time over which this shard's waiting polls spread their answers when the node drains: as many in a step as
    /// sessions are closed.
    pub(crate) fn poll_spread(&self) -> Duration {
        let waiting = u32::try_from(self.requests()).unwrap_or(u32::MAX);
        let most = self.node.drain_window.mul_f64(1.0 - LAST_CLIENTS_SHARE - POLLS_NOTICE_SHARE);
        STEP.saturating_mul(waiting).min(most)
    }
}

impl State {
    /// Closes sessions until at most `keep` are open.
    fn close_all_but(&mut self, keep: usize) {
        let open: Vec<SessionRef> = self.outgoing.sessions.all_open().map(|(session, _)| session).collect();
        for session in &open[..open.len().saturating_sub(keep)] {
            let after_ms = random_below(AFTER_MS_MAX);
            self.send(session.index, &Event::Reconnect { after_ms, reason: "draining" });
            self.end(*session, CloseReason::Draining, None);
        }
    }
}
