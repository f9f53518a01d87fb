//! Writing to sockets, at the end of the loop's turn, for as long as it is fair to the shard's other tasks; and waiting
//! for the sockets that are full. `outgoing` says who is next and writes.

use super::{SessionRef, Shard};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// Writes of one turn. 64 small ones take about 0.8 ms: so long a member of a small room waits at most behind a large
/// one. The loop has to yield by itself, because `try_write` does not count against tokio's budget for a task.
const WRITES_MAX: usize = 64;
/// How long a turn may write.
const TIME_MAX: Duration = Duration::from_micros(500);
/// Writes between two looks at the clock.
const CLOCK_EVERY: usize = 16;
/// One write of this many goes to the bulk queue, so that many small rooms cannot starve a large one.
const BULK_EVERY: usize = 8;

impl Shard {
    /// Writes until nothing waits or the turn is over.
    pub(super) fn flush_some(&self) {
        let state = &mut *self.state.borrow_mut();
        let began = Instant::now();
        let mut bytes = 0;
        for writes in 1..=WRITES_MAX {
            let Some(index) = state.outgoing.next_to_flush(writes % BULK_EVERY == 0) else { break };
            bytes += state.outgoing.flush(index);
            if writes % CLOCK_EVERY == 0 && began.elapsed() > TIME_MAX {
                break;
            }
        }
        // Each socket that has refused bytes is waited for, and its oldest frame may grow too old.
        for session in std::mem::take(&mut state.outgoing.refused) {
            state.watch_stale(session);
            state.spawn(|shard| shard.wait_until_writable(session));
        }
        self.node.metrics.delivered_bytes.inc_by(bytes as u64);
    }

    async fn wait_until_writable(self: Rc<Self>, session: SessionRef) {
        let socket = self.state.borrow_mut().outgoing.sessions.get(session).map(|conn| Rc::clone(&conn.socket));
        let Some(socket) = socket else { return };
        // If the socket has failed instead, the next write finds that out.
        let _ = socket.writable().await;
        self.state.borrow_mut().outgoing.on_writable(session);
    }
}
