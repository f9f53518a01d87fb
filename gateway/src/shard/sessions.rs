//! A session's life: opened with a welcome, ended for a reason, removed when its socket has ended; and sending to one
//! session. Called by the transports and by every step that sends something to a client.
//!
//! It also has what only streams need, the sessions whose clients cannot send over their connection (server-sent events
//! and HTTP streaming): the cursors that the client has reached in the rooms of its URL, heartbeats with these cursors,
//! and an end by age. The commands of these clients come by `posted`.

use super::{
    Opening, SessionRef, Shard, State,
    clock::is_past,
    conn::{Conn, FlushQueue, Phase, Stream, Timer},
    outgoing::Ended,
    rooms::Reached,
};
use crate::{
    policy::peer::ConnectionPermit,
    protocol::{
        FrameShape,
        address::PostAddress,
        close::CloseReason,
        end_event,
        event::{Event, WelcomeLimits},
        native, put_frame,
    },
    session::{Frames, Outbox, Session, keepalive::Keepalive},
};
use bytes::{Bytes, BytesMut};
use fanfare_broker::SessionId;
use std::rc::Rc;
use tokio::net::TcpStream;

/// How long a closing session may take to read its last frames, in milliseconds. Then its socket is cut.
pub(super) const CLOSING_MS: u32 = 3_000;

/// Milliseconds between two heartbeats, unless WebSockets are pinged more often. Proxies give up after 60 s of silence.
pub(super) const HEARTBEAT_MS: u32 = 15_000;

impl Shard {
    /// Opens a session on a socket whose request has been read and not answered, and greets the client.
    pub(crate) fn open(&self, socket: Rc<TcpStream>, permit: Option<ConnectionPermit>, opening: Opening) -> SessionRef {
        let (node, now_ms) = (&self.node, self.clock.now_ms());
        let Opening { shape, head, rooms } = opening;
        let id = SessionId::random();
        let stream = (shape != FrameShape::WebSocket).then(|| Box::new(Stream::new(rooms, now_ms)));
        let secret = stream.as_ref().map(|stream| stream.secret);
        let state = &mut *self.state.borrow_mut();
        let session = state.outgoing.sessions.insert(|generation| Conn {
            generation,
            queued_in: FlushQueue::None,
            phase: Phase::Open,
            blocked: false,
            stale_filed: false,
            shape,
            keepalive: Keepalive::new(now_ms),
            socket,
            outbox: Outbox::default(),
            session: Session::new(id, None, &node.limits, now_ms),
            unfinished: None,
            _permit: permit,
            stream,
        });
        node.metrics.sessions[shape as usize].inc();
        node.metrics.sessions_opened[shape as usize].inc();
        let ping_ms = state.ping_ms(session.index, shape);
        state.file(Timer::Keepalive(session), ping_ms);
        state.queue(session.index, head);
        let post = secret.map(|secret| {
            let address = PostAddress { node: node.id, shard: self.me.0, slot: session.to_u64(), secret };
            format!("/v1/sessions/{address}")
        });
        let welcome = Event::Welcome {
            session: id,
            node: &node.name,
            route: &node.route,
            post: post.as_deref(),
            ping_ms: u64::from(ping_ms),
            limits: WelcomeLimits { message_bytes: node.limits.message_bytes, rooms: node.limits.rooms_per_session },
        };
        state.send(session.index, &welcome);
        session
    }

    /// Removes a session. Called once by the session's reader, when the socket gives no more bytes; nothing else
    /// removes one.
    pub(crate) fn remove(&self, session: SessionRef) {
        let state = &mut *self.state.borrow_mut();
        state.end(session, CloseReason::Gone, Some(Bytes::new()));
        state.outgoing.sessions.remove(session);
    }

    /// Notes that bytes came from the client. Any bytes show that it is alive.
    pub(crate) fn heard(&self, session: SessionRef) {
        let now_ms = self.clock.now_ms();
        if let Some(conn) = self.state.borrow_mut().outgoing.sessions.get_open(session) {
            conn.keepalive.heard(now_ms);
        }
    }

    /// Queues what the WebSocket codec answers by itself (pongs), between whole frames like everything else.
    pub(crate) fn answer_control(&self, session: SessionRef, frames: Bytes) {
        let state = &mut *self.state.borrow_mut();
        if state.outgoing.sessions.get_open(session).is_some() {
            state.queue(session.index, frames);
        }
    }

    /// Ends a session because of what its client sent. `reply` is the WebSocket codec's answer to a close frame.
    pub(crate) fn close(&self, session: SessionRef, reason: CloseReason, reply: Option<Bytes>) {
        self.state.borrow_mut().end(session, reason, reply);
    }
}

impl State {
    /// Ends a session: its last frames and a close frame go out, and it leaves its rooms at once. Its socket's reader
    /// removes it. `reply` is the WebSocket codec's answer to a client's close frame, and is sent in place of ours.
    pub(super) fn end(&mut self, session: SessionRef, reason: CloseReason, reply: Option<Bytes>) {
        if let Some(ended) = self.outgoing.close(session, reason, reply) {
            self.depart(ended);
        }
    }

    /// Takes a session that has begun to close out of its rooms, and gives up what was posted for it.
    pub(super) fn depart(&mut self, Ended { session, shape, reason }: Ended) {
        self.leave_all(session);
        self.cancel_posts(session);
        let metrics = &self.node.metrics;
        metrics.sessions[shape as usize].dec();
        metrics.session_closed(reason);
        if reason == CloseReason::TooSlow {
            metrics.slow_consumers.inc();
        }
        self.file(Timer::Closed(session), CLOSING_MS);
    }

    // --- sending to one session ---

    /// Queues bytes for one open session, ahead of the messages of large rooms. A session that reads too slowly ends.
    pub(super) fn queue(&mut self, index: u32, bytes: Bytes) {
        let frames = self.outgoing.held.own(bytes);
        self.queue_frames(index, &frames);
    }

    pub(super) fn queue_frames(&mut self, index: u32, frames: &Frames) {
        if let Some(ended) = self.outgoing.queue(index, frames) {
            self.depart(ended);
        }
    }

    pub(super) fn send(&mut self, index: u32, event: &Event<'_>) {
        self.send_with_id(index, event, None);
    }

    /// Sends an event after which the client has reached a cursor in a room.
    pub(super) fn send_at(&mut self, index: u32, event: &Event<'_>, reached: Reached) {
        let id = self.event_id(index, reached);
        self.send_with_id(index, event, id.as_deref());
    }

    fn send_with_id(&mut self, index: u32, event: &Event<'_>, id: Option<&[u8]>) {
        let Some(shape) = self.outgoing.sessions.at(index).map(|conn| conn.shape) else { return };
        self.queue(index, native::frame(shape, event, id));
    }

    /// Sends a WebSocket's client a text that is encoded already.
    pub(super) fn send_text(&mut self, index: u32, text: &[u8]) {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, FrameShape::WebSocket, &[text]);
        self.queue(index, bytes.freeze());
    }

    // --- streams ---

    /// Records the cursor that a client has reached in a room of its URL. A member's cursor is the room's own; this one
    /// counts while the client is not a member.
    pub(super) fn record_reached(&mut self, index: u32, reached: Reached) {
        let Some(entry) = self.rooms.get(reached.room) else { return };
        let stream = self.outgoing.sessions.at(index).and_then(|conn| conn.stream.as_mut());
        let room = stream.and_then(|stream| stream.rooms.iter_mut().find(|room| room.name == entry.name));
        if let Some(room) = room {
            room.reached = reached.cursor;
        }
    }

    /// Records the cursor that the client reaches with an event, and returns the event's id; `None` if the client reads
    /// no ids.
    pub(super) fn event_id(&mut self, index: u32, reached: Reached) -> Option<Vec<u8>> {
        self.record_reached(index, reached);
        let conn = self.outgoing.sessions.at(index).filter(|conn| conn.shape == FrameShape::Sse)?;
        Some(self.rooms.cursors(conn, Some(reached)))
    }

    /// Sends a stream's heartbeat, or ends the stream by its age. The heartbeat has the client's cursors, because they
    /// also move past messages that the client excludes and so does not get.
    pub(super) fn beat(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        let (now_ms, shape) = (self.clock.now_ms(), conn.shape);
        let ends_ms = conn.stream.as_ref().map_or(now_ms, |stream| stream.ends_ms);
        if is_past(ends_ms, now_ms) {
            return self.end(session, CloseReason::Aged, None);
        }
        let cursors = self.rooms.cursors(conn, None);
        let bytes = if shape == FrameShape::Sse {
            let mut bytes = BytesMut::new();
            end_event(&mut bytes, Some(&cursors));
            bytes.freeze()
        } else {
            let cursor = std::str::from_utf8(&cursors).unwrap_or_default();
            native::frame(shape, &Event::Ping { cursor }, None)
        };
        self.queue(session.index, bytes);
        let ping_ms = self.ping_ms(session.index, shape);
        self.file(Timer::Keepalive(session), ping_ms.min(ends_ms.wrapping_sub(now_ms)));
    }
}
