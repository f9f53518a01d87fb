//! Sessions whose clients cannot send: event streams and line streams. Where such a client is in all the rooms of its URL,
//! its heartbeats, and its end. Opened by `transport::stream`; what it asks for comes by `posts`.

use super::{
    Shard, State,
    conn::{SessionRef, UrlRoom},
};
use crate::{
    protocol::{FrameShape, close::CloseReason, end_event, event::Event, native},
    random::random_below,
    session::{Frames, Stage},
};
use bytes::{Bytes, BytesMut};
use fanfare_broker::{Cursor, Epoch, Room};

/// A stream lives for 8 to 10 minutes, so that a node to be emptied empties by itself, and a balancer balances anew.
const AGE_MS: u32 = 8 * 60_000;
const AGE_SPREAD_MS: u64 = 2 * 60_000;
/// Milliseconds between two heartbeats, unless WebSockets are pinged more often. Proxies give up after 60 s of silence.
pub(super) const HEARTBEAT_MS: u32 = 15_000;
/// A client that is to come back at once is told to wait up to this, so that those of one moment do not return in one.
const AFTER_MS_MAX: u64 = 500;

/// What a session begins with.
pub(crate) struct Opening {
    pub(super) shape: FrameShape,
    /// The bytes before its first frame: the head of the HTTP response, and what a stream begins with.
    pub(super) head: Bytes,
    pub(super) rooms: Vec<UrlRoom>,
}

impl Opening {
    /// A WebSocket, which says what it wants by itself.
    pub(crate) fn websocket(head: Bytes) -> Self {
        Self { shape: FrameShape::WebSocket, head, rooms: Vec::new() }
    }

    /// A stream of the rooms in its URL: each with whether it has history, and the cursor it resumes from.
    pub(crate) fn stream(
        shape: FrameShape,
        head: Bytes,
        rooms: impl Iterator<Item = (Room, bool, Option<Cursor>)>,
    ) -> Self {
        let room = |(name, is_numbered, reached)| UrlRoom { name, is_numbered, reached };
        Self { shape, head, rooms: rooms.map(room).collect() }
    }
}

/// A room by its key, and a place in it.
pub(super) type At = (u32, Option<Cursor>);

/// How long a stream lives.
pub(super) fn age_ms() -> u32 {
    AGE_MS + random_below(AGE_SPREAD_MS) as u32
}

/// The last words on a stream.
pub(super) fn close(shape: FrameShape, reason: CloseReason) -> Bytes {
    let after_ms = random_below(AFTER_MS_MAX);
    let reconnect = reason.reconnect();
    let close = Event::Close { code: reason.code(), reconnect, after_ms: reconnect.then_some(after_ms) };
    let mut bytes = BytesMut::new();
    native::put_event(&mut bytes, shape, &close, None);
    bytes.freeze()
}

impl State {
    /// Notes where a client that is not a member has come to in a room; what an event's id is to say then, if this
    /// client reads ids.
    pub(super) fn note_reached(&mut self, index: u32, at: At) -> Option<Vec<u8>> {
        let Self { sessions, rooms, .. } = self;
        let conn = sessions.at(index)?;
        let stream = conn.stream.as_mut()?;
        let name = &rooms.get(at.0)?.name;
        if let Some(room) = stream.rooms.iter_mut().find(|room| room.name == *name) {
            room.reached = at.1;
        }
        (conn.shape == FrameShape::Event).then(|| self.cursors(index, Some(at)))
    }

    /// What the client of a stream has had of each room in its URL, as cursors in their order, joined by `~`: `-` for a
    /// room without history, nothing for one that it has not come into yet. `ahead` is a room in which it stands
    /// elsewhere than the room's other members.
    pub(super) fn cursors(&mut self, index: u32, ahead: Option<At>) -> Vec<u8> {
        let Self { sessions, rooms, .. } = self;
        let mut text = Vec::new();
        let Some(conn) = sessions.at(index) else { return text };
        for (i, room) in conn.stream.iter().flat_map(|stream| &stream.rooms).enumerate() {
            if i > 0 {
                text.push(b'~');
            }
            if !room.is_numbered {
                text.push(b'-');
                continue;
            }
            let key = rooms.find(room.name.as_str());
            let is_member = |key| conn.session.membership(key).is_some_and(|m| m.stage == Stage::Member);
            let place = match (key, ahead) {
                (Some(key), Some((here, at))) if key == here => at,
                (Some(key), _) if is_member(key) => rooms.get(key).and_then(super::rooms::RoomEntry::place),
                _ => room.reached,
            };
            match place {
                // A cursor that was no room's stays one that is no room's.
                Some(place) if place.epoch == Epoch::FOREIGN => text.extend_from_slice(b"00000000.0"),
                Some(place) => text.extend_from_slice(&native::cursor_text(place)),
                None => {}
            }
        }
        text
    }
}

impl Shard {
    /// A stream's heartbeat, which is a sign of life and says where the client is: rooms go on without it where its
    /// messages are not for it. Its age ends it.
    pub(super) fn beat(&self, state: &mut State, who: SessionRef) {
        let Some(conn) = state.sessions.open(who) else { return };
        let shape = conn.shape;
        let left_ms = conn.stream.as_ref().map_or(0, |stream| stream.ends_ms.wrapping_sub(self.now_ms()));
        if left_ms == 0 || left_ms > u32::MAX / 2 {
            return self.end(state, who, CloseReason::Aged, None);
        }
        let cursors = state.cursors(who.index, None);
        let mut bytes = BytesMut::new();
        if shape == FrameShape::Event {
            end_event(&mut bytes, Some(&cursors));
        } else {
            let cursor = std::str::from_utf8(&cursors).unwrap_or_default();
            native::put_event(&mut bytes, shape, &Event::Ping { cursor }, None);
        }
        self.queue(state, who.index, Frames { bytes: bytes.freeze(), count: 1 });
        let ping_ms = self.ping_ms(who.index, shape);
        self.start_wheel_entry(state, super::conn::Timer::Keepalive(who), ping_ms.min(left_ms));
    }
}
