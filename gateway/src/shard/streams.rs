//! What only streams need, the sessions whose clients cannot send over their connection (server-sent events and HTTP
//! streaming): the cursors that such a client has reached in the rooms of its URL, heartbeats that tell it, and an end
//! by age. Opened by `transport::stream`; what the clients ask comes by `posted`.

use super::{SessionRef, State, clock::is_past, conn::Timer, rooms::Reached};
use crate::{
    protocol::{FrameShape, close::CloseReason, end_event, event::Event, native},
    session::Frames,
};
use bytes::BytesMut;

/// Milliseconds between two heartbeats, unless WebSockets are pinged more often. Proxies give up after 60 s of silence.
pub(super) const HEARTBEAT_MS: u32 = 15_000;

impl State {
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

    /// Records the cursor too. Returns the id of the event that brings the client there, if the client reads ids.
    pub(super) fn event_id(&mut self, index: u32, reached: Reached) -> Option<Vec<u8>> {
        self.record_reached(index, reached);
        let conn = self.outgoing.sessions.at(index).filter(|conn| conn.shape == FrameShape::Event)?;
        Some(self.rooms.cursors(conn, Some(reached)))
    }

    /// Sends a stream's heartbeat, or ends the stream by its age. The heartbeat tells the cursors, which move without
    /// the client where the room's messages are not for it.
    pub(super) fn beat(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.open(session) else { return };
        let (now_ms, shape) = (self.clock.now_ms(), conn.shape);
        let ends_ms = conn.stream.as_ref().map_or(now_ms, |stream| stream.ends_ms);
        if is_past(ends_ms, now_ms) {
            return self.end(session, CloseReason::Aged, None);
        }
        let cursors = self.rooms.cursors(conn, None);
        let bytes = if shape == FrameShape::Event {
            let mut bytes = BytesMut::new();
            end_event(&mut bytes, Some(&cursors));
            bytes.freeze()
        } else {
            let cursor = std::str::from_utf8(&cursors).unwrap_or_default();
            native::frame(shape, &Event::Ping { cursor }, None)
        };
        self.queue(session.index, &Frames { bytes, count: 1 });
        let ping_ms = self.ping_ms(session.index, shape);
        self.file(Timer::Keepalive(session), ping_ms.min(ends_ms.wrapping_sub(now_ms)));
    }
}
