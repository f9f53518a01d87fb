//! What goes out: the sessions with their outboxes, and the queues of the sessions that have something to write. Frames
//! are queued here, and written at the end of the loop's turn: one vectored write per session, however many messages it
//! carries. One write costs ten times the work before it, so the number of writes matters more than anything else.
//!
//! Nothing here knows rooms. If a method returns an [`Ended`], the caller takes that session out of its rooms.

use super::{
    clock::Clock,
    conn::{Conn, FlushQueue, Phase, SessionRef, Sessions},
};
use crate::{
    node::inbox::Inbox,
    protocol::{FrameShape, close::CloseReason, control_frame, event::Event, native},
    random::random_below,
    session::{Frames, HeldBytes, Outbox, OutboxLimits, SLICES_MAX},
};
use bytes::Bytes;
use std::{
    cmp::Reverse,
    collections::VecDeque,
    io::{self, IoSlice},
    net::Shutdown,
    sync::Arc,
};

/// A client that is told to reconnect waits up to this time, so that clients whose sessions end in one moment do not
/// all return in one moment.
const AFTER_MS_MAX: u64 = 500;

/// When memory is short, sessions whose times without progress differ by less are told apart by what waits for them.
const EVICT_IDLE_MS: u32 = 1_000;

/// The sessions of a shard, what waits for their clients, and who is next to be written to.
pub(super) struct Outgoing {
    pub(super) sessions: Sessions,
    urgent: VecDeque<u32>,
    bulk: VecDeque<u32>,
    /// Sessions whose sockets have just refused bytes. The loop starts a task for each that waits until it takes bytes
    /// again.
    pub(super) refused: Vec<SessionRef>,
    /// The buffers that outboxes refer to.
    pub(super) held: HeldBytes,
    /// The answers to polls that are being made or written.
    pub(super) answers: HeldBytes,
    /// The bytes of both when the metric was last updated.
    bytes_reported: usize,
    limits: OutboxLimits,
    clock: Clock,
    inbox: Arc<Inbox>,
}

/// A session that has just begun to close. It is still in its rooms: `State::depart` takes it out.
#[must_use]
pub(super) struct Ended {
    pub(super) session: SessionRef,
    pub(super) shape: FrameShape,
    pub(super) reason: CloseReason,
}

impl Outgoing {
    pub(super) fn new(sessions: Sessions, limits: OutboxLimits, clock: Clock, inbox: Arc<Inbox>) -> Self {
        let (urgent, bulk, refused) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let (held, answers) = (HeldBytes::default(), HeldBytes::default());
        Self { sessions, urgent, bulk, refused, held, answers, bytes_reported: 0, limits, clock, inbox }
    }

    pub(super) fn now_ms(&self) -> u32 {
        self.clock.now_ms()
    }

    // --- queueing ---

    /// Queues frames for one open session, ahead of the messages of large rooms.
    pub(super) fn queue(&mut self, index: u32, frames: &Frames) -> Option<Ended> {
        self.queue_for_all(&[index], std::array::from_ref(frames), FlushQueue::Urgent, self.now_ms()).pop()
    }

    /// Queues frames for many sessions, each at most once: the hot loop. `parts` is queued as a whole or not at all.
    /// Returns the sessions that it has ended because their clients read too slowly.
    pub(super) fn queue_for_all<const PARTS: usize>(
        &mut self,
        indices: &[u32],
        parts: &[Frames; PARTS],
        queued_in: FlushQueue,
        now_ms: u32,
    ) -> Vec<Ended> {
        let queue = if queued_in == FlushQueue::Urgent { &mut self.urgent } else { &mut self.bulk };
        let was_empty = queue.is_empty();
        let mut full = Vec::new();
        for index in indices {
            let Some(conn) = self.sessions.at(*index).filter(|conn| conn.phase == Phase::Open) else { continue };
            if conn.outbox.push(parts, conn.blocked, now_ms, &self.limits).is_err() {
                full.push(*index);
                continue;
            }
            if !conn.blocked && conn.queued_in != FlushQueue::Urgent && conn.queued_in != queued_in {
                conn.queued_in = queued_in;
                queue.push_back(*index);
            }
        }
        if was_empty && !queue.is_empty() {
            self.inbox.wake();
        }
        full.into_iter().filter_map(|index| self.queue_after_flush(index, parts)).collect()
    }

    /// Queues frames for a session whose outbox is full. Its socket is written to first, because the loop may not have
    /// written to this session in this turn.
    fn queue_after_flush<const PARTS: usize>(&mut self, index: u32, parts: &[Frames; PARTS]) -> Option<Ended> {
        if self.sessions.at(index).is_some_and(|conn| !conn.blocked) {
            self.flush(index);
            if !self.refused.is_empty() {
                self.inbox.wake();
            }
        }
        let conn = self.sessions.at(index)?;
        if conn.outbox.push(parts, conn.blocked, self.clock.now_ms(), &self.limits).is_err() {
            let session = SessionRef { index, generation: conn.generation };
            return self.close(session, CloseReason::TooSlow, None);
        }
        self.mark(index, FlushQueue::Urgent);
        None
    }

    /// Queues a frame past the outbox's limits, for a caller that paces itself.
    pub(super) fn queue_unbounded(&mut self, index: u32, frames: Frames) {
        let Some(conn) = self.sessions.at(index) else { return };
        conn.outbox.push_unbounded(frames, self.clock.now_ms());
        self.mark(index, FlushQueue::Urgent);
    }

    /// Puts a session into a flush queue, unless it is in one or its socket is full.
    fn mark(&mut self, index: u32, queue: FlushQueue) {
        let Some(conn) = self.sessions.at(index) else { return };
        if conn.blocked || conn.queued_in == FlushQueue::Urgent || conn.queued_in == queue {
            return;
        }
        conn.queued_in = queue;
        let queue = if queue == FlushQueue::Urgent { &mut self.urgent } else { &mut self.bulk };
        if queue.is_empty() {
            self.inbox.wake();
        }
        queue.push_back(index);
    }

    // --- ending ---

    /// Begins to close a session: its last frames and a close frame go out. `reply` is what the WebSocket codec answers
    /// to the client's close frame, and goes out in place of ours.
    pub(super) fn close(&mut self, session: SessionRef, reason: CloseReason, reply: Option<Bytes>) -> Option<Ended> {
        let conn = self.sessions.get_open(session)?;
        conn.phase = Phase::Closing;
        conn.unfinished = None;
        if matches!(reason, CloseReason::TooSlow | CloseReason::Silent | CloseReason::Gone) {
            conn.outbox.discard(); // what waits would not be read
        }
        let shape = conn.shape;
        let bytes = reply.unwrap_or_else(|| close_frame(shape, reason));
        conn.outbox.push_unbounded(self.held.own(bytes), self.clock.now_ms());
        self.mark(session.index, FlushQueue::Urgent);
        Some(Ended { session, shape, reason })
    }

    /// If the buffers that wait exceed the shard's budget, closes sessions whose sockets have refused bytes until the
    /// rest fits: first those that have taken nothing for longest, and of several the one for which most waits. Closing a
    /// session frees what no other one waits for. It looks at all sessions, so only the timer task calls it, once per
    /// tick; within a tick only the limit of each outbox holds.
    pub(super) fn evict(&mut self, bytes_max: usize) -> Vec<Ended> {
        let mut ended = Vec::new();
        if self.held.total() <= bytes_max {
            return ended;
        }
        let now_ms = self.now_ms();
        let slow = self
            .sessions
            .blocked()
            .map(|(session, conn)| (conn.outbox.idle_ms(now_ms) / EVICT_IDLE_MS, conn.outbox.bytes(), session));
        let mut slow: Vec<_> = slow.collect();
        slow.sort_unstable_by_key(|(idle, bytes, _)| Reverse((*idle, *bytes)));
        for (_, _, session) in slow {
            if self.held.total() <= bytes_max {
                break;
            }
            ended.extend(self.close(session, CloseReason::TooSlow, None));
            if let Some(conn) = self.sessions.get(session) {
                // Its socket takes nothing, so a close frame would wait too, behind the rest of a frame.
                conn.outbox = Outbox::default();
                conn.shut(Shutdown::Both);
            }
        }
        ended
    }

    // --- flushing ---

    pub(super) fn is_idle(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty() && self.refused.is_empty()
    }

    /// The next session to write to: an urgent one, unless it is the bulk queue's turn.
    pub(super) fn next_to_flush(&mut self, is_bulks_turn: bool) -> Option<u32> {
        if (!is_bulks_turn || self.bulk.is_empty())
            && let Some(index) = self.urgent.pop_front()
        {
            return Some(index);
        }
        // A session that was moved to the urgent queue is skipped in this one.
        while let Some(index) = self.bulk.pop_front() {
            if self.sessions.at(index).is_some_and(|conn| conn.queued_in == FlushQueue::Bulk) {
                return Some(index);
            }
        }
        self.urgent.pop_front()
    }

    /// Writes one session's outbox, as far as the socket takes it; how many bytes that was.
    pub(super) fn flush(&mut self, index: u32) -> usize {
        let Some(conn) = self.sessions.at(index) else { return 0 };
        conn.queued_in = FlushQueue::None;
        let before = conn.outbox.bytes();
        let result = write(conn, self.clock);
        conn.wake_waiters(&self.limits);
        match result {
            Ok(()) if conn.phase == Phase::Closing => conn.shut(Shutdown::Write),
            Ok(()) => {}
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                conn.blocked = true;
                self.refused.push(SessionRef { index, generation: conn.generation });
            }
            // The reader sees the end of the socket and removes the session.
            Err(_) => conn.shut(Shutdown::Both),
        }
        before - conn.outbox.bytes()
    }

    /// A socket that was full takes bytes again. Its client is behind, and others must not wait for it.
    pub(super) fn on_writable(&mut self, session: SessionRef) {
        if let Some(conn) = self.sessions.get(session) {
            conn.blocked = false;
            self.mark(session.index, FlushQueue::Bulk);
        }
    }

    // --- figures ---

    /// By how much the bytes that wait have grown since the last call.
    pub(super) fn report_bytes(&mut self) -> i64 {
        let bytes = self.held.total() + self.answers.total();
        let reported = std::mem::replace(&mut self.bytes_reported, bytes);
        bytes as i64 - reported as i64
    }

    /// Empties all outboxes as if their sockets had taken everything; how many bytes that was. For the benchmark.
    pub(super) fn discard_all(&mut self) -> usize {
        let mut bytes = 0;
        for index in self.urgent.drain(..).chain(self.bulk.drain(..)) {
            if let Some(conn) = self.sessions.at(index) {
                conn.queued_in = FlushQueue::None;
                bytes += conn.outbox.bytes();
                conn.outbox.advance(conn.outbox.bytes(), 0);
            }
        }
        bytes
    }
}

/// Writes to the socket until the outbox is empty. [`io::ErrorKind::WouldBlock`]: the socket is full.
fn write(conn: &mut Conn, clock: Clock) -> io::Result<()> {
    while !conn.outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = conn.outbox.slices(&mut slices);
        let written = match &slices[..filled] {
            [one] => conn.socket.try_write(one)?,
            many => conn.socket.try_write_vectored(many)?,
        };
        conn.outbox.advance(written, clock.now_ms());
    }
    Ok(())
}

/// The last frame of a session: a WebSocket's close frame, or the event `close` on a stream.
fn close_frame(shape: FrameShape, reason: CloseReason) -> Bytes {
    if shape == FrameShape::WebSocket {
        return control_frame::close(reason);
    }
    let reconnect = reason.reconnect();
    let after_ms = reconnect.then(|| random_below(AFTER_MS_MAX));
    native::frame(shape, &Event::Close { code: reason.code(), reconnect, after_ms }, None)
}
