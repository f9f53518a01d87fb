//! The end of a tick: what outboxes hold goes to the sockets, one vectored write per session however many messages it
//! carries. One write costs ten times all the work before it, so what matters is how few there are.

use super::{
    Shard, State,
    conn::{FlushQueue, Phase, SessionRef},
};
use crate::session::SLICES_MAX;
use std::{
    io::{self, IoSlice},
    rc::Rc,
    time::{Duration, Instant},
};

/// Writes between two chances for other tasks: 64 small ones take about 0.8 ms, which bounds how long a member of a
/// small room waits behind a large one. `try_write` does not consume tokio's budget, so the flush yields by itself.
const WRITES_MAX: usize = 64;
const TIME_MAX: Duration = Duration::from_micros(500);
/// How many writes go between two looks at the clock.
const CLOCK_EVERY: usize = 16;

/// Every so many writes one is for the bulk queue, so that many small rooms cannot starve a large one.
const BULK_EVERY: usize = 8;

/// What one write came to.
enum Wrote {
    All,
    /// The socket is full.
    Part,
    Failed,
}

impl Shard {
    /// Flushes until nothing waits or it is others' turn.
    pub(super) fn flush_some(self: &Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        let began = Instant::now();
        let mut bytes = 0;
        for writes in 1..=WRITES_MAX {
            let Some(index) = next(state, writes % BULK_EVERY == 0) else { break };
            bytes += self.flush(state, index);
            if writes % CLOCK_EVERY == 0 && began.elapsed() > TIME_MAX {
                break;
            }
        }
        self.node.metrics.delivered_bytes.inc_by(bytes as u64);
    }

    /// Writes one session's outbox; returns the bytes that the kernel took.
    pub(super) fn flush(&self, state: &mut State, index: u32) -> usize {
        let Some(conn) = state.sessions.at(index) else { return 0 };
        conn.queued_in = FlushQueue::None;
        let before = conn.outbox.bytes();
        let wrote = loop {
            if conn.outbox.is_empty() {
                break Wrote::All;
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = conn.outbox.slices(&mut slices);
            let result = match &slices[..filled] {
                [one] => conn.socket.try_write(one),
                many => conn.socket.try_write_vectored(many),
            };
            match result {
                Ok(written) => conn.outbox.advance(written, self.now_ms()),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break Wrote::Part,
                Err(_) => break Wrote::Failed,
            }
        };
        let taken = before - conn.outbox.bytes();
        let who = SessionRef { index, generation: conn.generation };
        match wrote {
            Wrote::All => {
                for waiter in conn.drained.take().map(|waiters| waiters.0).unwrap_or_default() {
                    let _ = waiter.send(()); // the join may have been given up
                }
                if conn.phase == Phase::Closing {
                    shut(conn, std::net::Shutdown::Write);
                }
            }
            Wrote::Part => {
                conn.blocked = true;
                self.watch_stale(state, who);
                if let Some(this) = self.this.upgrade() {
                    tokio::task::spawn_local(this.wait_until_writable(who));
                }
            }
            // The reader sees the end and removes the session.
            Wrote::Failed => shut(conn, std::net::Shutdown::Both),
        }
        state.outbox_bytes -= taken;
        taken
    }

    async fn wait_until_writable(self: Rc<Self>, who: SessionRef) {
        let Some(socket) = self.state.borrow_mut().sessions.get(who).map(|conn| Rc::clone(&conn.socket)) else {
            return;
        };
        let writable = socket.writable().await;
        let state = &mut *self.state.borrow_mut();
        let Some(conn) = state.sessions.get(who) else { return };
        conn.blocked = false;
        match writable {
            Ok(()) => self.mark_dirty(state, who.index, FlushQueue::Urgent),
            Err(_) => shut(conn, std::net::Shutdown::Both),
        }
    }
}

/// The next session to write for: urgent ones first, unless it is the bulk queue's turn. One that was moved to the
/// urgent queue is skipped in the other.
fn next(state: &mut State, bulks_turn: bool) -> Option<u32> {
    if (!bulks_turn || state.bulk.is_empty())
        && let Some(index) = state.urgent.pop_front()
    {
        return Some(index);
    }
    while let Some(index) = state.bulk.pop_front() {
        if state.sessions.at(index).is_some_and(|conn| conn.queued_in == FlushQueue::Bulk) {
            return Some(index);
        }
    }
    state.urgent.pop_front()
}

/// Ends a direction of a socket. That it may be gone already is all that can fail.
pub(super) fn shut(conn: &super::Conn, how: std::net::Shutdown) {
    drop(socket2::SockRef::from(&*conn.socket).shutdown(how));
}
