//! How a shard takes leave of its sessions when the node drains: each is told when to come back and closed, spread
//! evenly over the window, so that the other nodes see a stream of reconnects and not a storm.

use super::{Shard, State, conn::SessionRef};
use crate::{
    protocol::{close::CloseReason, event::Event},
    random::random_below,
};
use std::{rc::Rc, time::Duration};

/// What of the window is left for the broker's farewell.
const FAREWELL: f64 = 0.05;
/// What of the window is left for that and the last clients.
const RESERVE: f64 = 0.15;
/// What of the window passes, at most, until a poll that waits has noticed: a quarter of a second of the shortest, 2 s.
const LOOK: f64 = 0.125;
/// How often closes go out.
const STEP: Duration = Duration::from_millis(20);
/// The hint in `reconnect` is up to this: closes are spread already, it only parts those of one step.
const AFTER_MS_MAX: u64 = 200;

impl Shard {
    /// Closes all sessions, spread over most of `window` or faster if there are few; returns when the last one is gone
    /// and the last request answered, or at the window's end.
    pub(crate) async fn drain(self: Rc<Self>, window: Duration) {
        let end = tokio::time::Instant::now() + window.mul_f64(1.0 - FAREWELL);
        let window = window.mul_f64(1.0 - RESERVE);
        let total = self.state.borrow().sessions.all_open().count();
        let steps = ((window.as_millis() / STEP.as_millis()) as usize).min(total).max(1);
        let mut ticks = tokio::time::interval(STEP);
        for step in 1..=steps {
            ticks.tick().await;
            let state = &mut *self.state.borrow_mut();
            let open = state.sessions.all_open().count();
            let keep = total - total * step / steps;
            let leaving: Vec<SessionRef> =
                state.sessions.all_open().map(|(who, _)| who).take(open.saturating_sub(keep)).collect();
            for who in leaving {
                self.dismiss(state, who);
            }
        }
        // Also with no time left the close frames go out as far as the sockets take them.
        for _ in 0..=total {
            self.flush_some();
        }
        // The last close frames need a moment to be read; stragglers are cut by their closing timer. Requests, and polls that
        // wait, are answered in their own time, which is within the window.
        let closed = end.min(tokio::time::Instant::now() + Duration::from_millis(u64::from(super::CLOSING_MS)));
        let is_busy = |now| (self.state.borrow().sessions.len() > 0 && now < closed) || self.requests.get() > 0;
        while is_busy(tokio::time::Instant::now()) && tokio::time::Instant::now() < end {
            ticks.tick().await;
        }
    }

    /// Over how long the polls that wait here are answered when the node drains: as many at a time as sessions are closed.
    pub(crate) fn poll_spread(&self) -> Duration {
        let waiting = u32::try_from(self.requests.get()).unwrap_or(u32::MAX);
        STEP.saturating_mul(waiting).min(self.node.drain_window.mul_f64(1.0 - RESERVE - LOOK))
    }

    fn dismiss(&self, state: &mut State, who: SessionRef) {
        let after_ms = random_below(AFTER_MS_MAX);
        self.send(state, who.index, &Event::Reconnect { after_ms, reason: "draining" });
        self.end(state, who, CloseReason::Draining, None);
    }
}
