//! The sessions of one shard: the table of them, and what belongs to each beside its protocol state: socket, outbox,
//! keepalive, flush queue. Data; `sessions` opens, ends and removes them.

use crate::{
    policy::peer::ConnectionPermit,
    protocol::{FrameShape, address::Secret, command::RequestId},
    random::random_below,
    session::{Hold, Outbox, OutboxLimits, Session, keepalive::Keepalive},
};
use bytes::Bytes;
use fanfare_broker::{Cursor, HistoryQuery, Room};
use slab::Slab;
use std::{
    collections::VecDeque,
    net::Shutdown,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{net::TcpStream, sync::oneshot};

/// A stream lives for 8 to 10 minutes. So a node that is to be emptied empties by itself, and a load balancer
/// distributes the clients anew.
const STREAM_AGE_MS: u32 = 8 * 60_000;
const STREAM_AGE_SPREAD_MS: u64 = 2 * 60_000;

/// A session by its index in the table; the generation tells it from an earlier session of the same index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionRef {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl SessionRef {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// What a session begins with.
pub(crate) struct Opening {
    pub(crate) shape: FrameShape,
    /// The bytes before the first frame: the head of the HTTP response, and what a stream begins with.
    pub(crate) head: Bytes,
    /// The rooms of a stream; a WebSocket's client names its rooms itself.
    pub(crate) rooms: Vec<UrlRoom>,
}

/// The flush queue in which a session waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushQueue {
    /// No queue: its outbox is empty, or its socket is full.
    None,
    /// The queue for members of large rooms.
    Bulk,
    /// The queue for everything else, which goes first.
    Urgent,
}

/// Whether a session is open or has begun to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Its last frames are written; nothing more is queued for it.
    Closing,
}

/// One session of the shard, with its socket and its outbox.
pub(super) struct Conn {
    pub(super) generation: u32,
    pub(super) queued_in: FlushQueue,
    pub(super) phase: Phase,
    /// The socket takes no more bytes; a task waits until it does.
    pub(super) blocked: bool,
    /// The wheel holds a [`Timer::Stale`] for the session.
    pub(super) stale_filed: bool,
    pub(super) shape: FrameShape,
    pub(super) keepalive: Keepalive,
    pub(super) socket: Rc<TcpStream>,
    pub(super) outbox: Outbox,
    pub(super) session: Session,
    /// What joins and questions that are not complete keep here.
    pub(super) unfinished: Option<Box<Unfinished>>,
    /// Counts the connection against its client's address.
    pub(super) _permit: Option<ConnectionPermit>,
    /// Set for an event stream or a line stream.
    pub(super) stream: Option<Box<Stream>>,
}

/// What a session's joins and questions keep with it until they are complete. Boxed, because a session hardly ever has
/// one.
#[derive(Default)]
pub(super) struct Unfinished {
    /// From where a room's join is to resume that has no `joined` yet. A later join of the room resumes there too.
    since: Vec<(u32, Cursor)>,
    /// How far the messages go that were sent for a room's join. A later join of the room goes on from there.
    reached: Vec<(u32, Cursor)>,
    /// Tasks that wait for space in the outbox, because they send much in portions.
    waiters: Vec<oneshot::Sender<()>>,
    /// What the client has asked over its own connection. The first question is being answered.
    pub(super) questions: VecDeque<Question>,
}

/// A question that waits for its turn.
pub(super) struct Question {
    pub(super) id: RequestId,
    pub(super) room: Room,
    pub(super) subject: Subject,
    pub(super) _hold: Hold,
}

/// What a client asks about a room.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    Members,
    History(HistoryQuery),
}

/// What an event stream or a line stream needs in addition, because its client cannot send over the connection.
pub(super) struct Stream {
    /// Permits to post commands for the session.
    pub(super) secret: Secret,
    /// The rooms of the URL, in the order of the cursors in an event's id. A browser that reconnects repeats the URL,
    /// so the ids name these rooms only, whatever else the session has joined.
    pub(super) rooms: Vec<UrlRoom>,
    /// When the stream ends, by the shard's clock.
    pub(super) ends_ms: u32,
}

/// A room of a stream's URL.
pub(crate) struct UrlRoom {
    pub(crate) name: Room,
    /// Whether the room has history, so that its messages have cursors.
    pub(crate) is_numbered: bool,
    /// The cursor that the client has reached, while it is not a member; at first the one from which it resumes.
    pub(crate) reached: Option<Cursor>,
}

impl Stream {
    pub(super) fn new(rooms: Vec<UrlRoom>, now_ms: u32) -> Self {
        let age_ms = STREAM_AGE_MS + random_below(STREAM_AGE_SPREAD_MS) as u32;
        Self { secret: Secret::random(), rooms, ends_ms: now_ms.wrapping_add(age_ms) }
    }
}

impl Conn {
    /// What a caller that paces itself has to wait for: it ends when the outbox has space again, or the session ends.
    /// The caller then looks again, since others may have waited too. `None`: less than half of the outbox is in use.
    pub(super) fn wait_for_space(&mut self, limits: &OutboxLimits) -> Option<oneshot::Receiver<()>> {
        self.outbox.is_half_full(limits).then(|| self.wait_for_flush())
    }

    /// The same for an answer that may take half of an outbox, so that more has to be free. `None`: less than a quarter
    /// is in use.
    pub(super) fn wait_to_answer(&mut self, limits: &OutboxLimits) -> Option<oneshot::Receiver<()>> {
        let is_free = !self.outbox.is_half_full(limits) && self.outbox.bytes() <= limits.bytes / 4;
        (!is_free).then(|| self.wait_for_flush())
    }

    fn wait_for_flush(&mut self) -> oneshot::Receiver<()> {
        let (sender, flushed) = oneshot::channel();
        self.unfinished.get_or_insert_default().waiters.push(sender);
        flushed
    }

    /// Wakes those who wait for space, if there is some. Call this after each write.
    pub(super) fn wake_waiters(&mut self, limits: &OutboxLimits) {
        if let Some(unfinished) = &mut self.unfinished
            && !self.outbox.is_half_full(limits)
        {
            for waiter in unfinished.waiters.drain(..) {
                let _ = waiter.send(()); // what it waited for may have been given up
            }
            self.drop_finished();
        }
    }

    /// From where the room's join that has no `joined` yet is to resume.
    pub(super) fn since(&self, room: u32) -> Option<Cursor> {
        cursor_of(&self.unfinished.as_ref()?.since, room)
    }

    pub(super) fn set_since(&mut self, room: u32, since: Cursor) {
        set_cursor(&mut self.unfinished.get_or_insert_default().since, room, since);
    }

    /// The cursor up to which messages were sent for a join that is not complete; `None` before its `joined`.
    pub(super) fn reached(&self, room: u32) -> Option<Cursor> {
        cursor_of(&self.unfinished.as_ref()?.reached, room)
    }

    pub(super) fn set_reached(&mut self, room: u32, cursor: Cursor) {
        let unfinished = self.unfinished.get_or_insert_default();
        unfinished.since.retain(|(of, _)| *of != room);
        set_cursor(&mut unfinished.reached, room, cursor);
    }

    /// The join is complete, or was left.
    pub(super) fn forget_join(&mut self, room: u32) {
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.since.retain(|(of, _)| *of != room);
            unfinished.reached.retain(|(of, _)| *of != room);
            self.drop_finished();
        }
    }

    /// Frees the box when nothing is left in it.
    pub(super) fn drop_finished(&mut self) {
        self.unfinished.take_if(|unfinished| {
            let Unfinished { since, reached, waiters, questions } = &**unfinished;
            since.is_empty() && reached.is_empty() && waiters.is_empty() && questions.is_empty()
        });
    }

    /// Whether the session can share its frames with the other members of the room. An event stream of several rooms
    /// cannot: the ids of its events name the cursors of all of them.
    pub(super) fn shares_frames(&self, room: &Room) -> bool {
        match &self.stream {
            Some(stream) if self.shape == FrameShape::Sse => matches!(&stream.rooms[..], [only] if only.name == *room),
            _ => true,
        }
    }

    /// Ends one direction of the socket, or both. The only possible failure is that the socket has ended already.
    pub(super) fn shut(&self, how: Shutdown) {
        drop(socket2::SockRef::from(&*self.socket).shutdown(how));
    }
}

fn cursor_of(cursors: &[(u32, Cursor)], room: u32) -> Option<Cursor> {
    cursors.iter().find(|(of, _)| *of == room).map(|(_, cursor)| *cursor)
}

fn set_cursor(cursors: &mut Vec<(u32, Cursor)>, room: u32, cursor: Cursor) {
    match cursors.iter_mut().find(|(of, _)| *of == room) {
        Some((_, set)) => *set = cursor,
        None => cursors.push((room, cursor)),
    }
}

/// What the wheel holds, to be looked at when it is due.
#[derive(Debug, Clone, Copy)]
pub(super) enum Timer {
    /// The session is pinged, or closed if it has not answered.
    Keepalive(SessionRef),
    /// The session is closed if its client has taken nothing for too long.
    Stale(SessionRef),
    /// The socket of a closing session is cut.
    Closed(SessionRef),
    /// The post with this first reply number is answered, complete or not.
    Post(u32),
}

/// The table of a shard's sessions.
pub(super) struct Sessions {
    conns: Slab<Box<Conn>>,
    generations: u32,
    /// The number of sessions, for the acceptor, which balances shards.
    load: Arc<AtomicUsize>,
}

impl Sessions {
    pub(super) fn new(load: Arc<AtomicUsize>) -> Self {
        Self { conns: Slab::new(), generations: 0, load }
    }

    pub(super) fn len(&self) -> usize {
        self.conns.len()
    }

    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> Conn) -> SessionRef {
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        let index = self.conns.insert(Box::new(make(generation))) as u32;
        self.load.store(self.len(), Ordering::Relaxed);
        SessionRef { index, generation }
    }

    pub(super) fn remove(&mut self, session: SessionRef) -> Option<Box<Conn>> {
        self.get(session)?;
        let conn = self.conns.try_remove(session.index as usize);
        self.load.store(self.len(), Ordering::Relaxed);
        conn
    }

    /// The session that has this index now.
    pub(super) fn at(&mut self, index: u32) -> Option<&mut Conn> {
        self.conns.get_mut(index as usize).map(|conn| &mut **conn)
    }

    /// The session, if it is still in the table and has not begun to close.
    pub(super) fn get_open(&mut self, session: SessionRef) -> Option<&mut Conn> {
        self.get(session).filter(|conn| conn.phase == Phase::Open)
    }

    /// The session, if it is still in the table; it may have begun to close.
    pub(super) fn get(&mut self, session: SessionRef) -> Option<&mut Conn> {
        self.at(session.index).filter(|conn| conn.generation == session.generation)
    }

    pub(super) fn all_open(&self) -> impl Iterator<Item = (SessionRef, &Conn)> {
        let open = self.conns.iter().filter(|(_, conn)| conn.phase == Phase::Open);
        open.map(|(index, conn)| (SessionRef { index: index as u32, generation: conn.generation }, &**conn))
    }

    /// The open sessions whose sockets take no more.
    pub(super) fn blocked(&self) -> impl Iterator<Item = (SessionRef, &Conn)> {
        self.all_open().filter(|(_, conn)| conn.blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_costs_a_small_entry() {
        let sizes = [size_of::<Conn>(), size_of::<Session>(), size_of::<Outbox>()];
        assert!(sizes.into_iter().zip([256, 80, 96]).all(|(size, most)| size <= most), "{sizes:?}");
    }
}
