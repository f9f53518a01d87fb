//! One session as its shard holds it: socket, outbox, session, liveness; and the table of them. Exactly one function
//! removes a session (`Sessions::remove`), called from one place (`Shard::remove`).

use crate::{
    policy::peer::ConnectionPermit,
    protocol::{FrameShape, address::Secret, close::CloseReason},
    session::{Outbox, Session, keepalive::Keepalive},
};
use fanfare_broker::{Cursor, Room};
use slab::Slab;
use std::rc::Rc;
use tokio::{net::TcpStream, sync::oneshot};

/// A session of this shard: its place in the table, and which of the place's tenants it is.
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

/// Which flush queue a session waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushQueue {
    /// None: nothing to write, or the socket is full.
    None,
    /// Behind the other members of a large room.
    Bulk,
    /// Before those.
    Urgent,
}

/// How far a session's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Its last frames go out; it is in no room any more.
    Closing,
}

/// See the module's head.
pub(super) struct Conn {
    pub(super) generation: u32,
    pub(super) queued_in: FlushQueue,
    pub(super) phase: Phase,
    /// The socket takes no more; a task waits until it does.
    pub(super) blocked: bool,
    /// The wheel holds a [`Timer::Stale`] for it.
    pub(super) stale_filed: bool,
    pub(super) shape: FrameShape,
    pub(super) live: Keepalive,
    pub(super) socket: Rc<TcpStream>,
    pub(super) outbox: Outbox,
    pub(super) session: Session,
    /// Told when the outbox is empty: a join that sends history in portions.
    pub(super) drained: Option<Box<Waiters>>,
    /// Its place among its address's connections.
    pub(super) _seat: Option<ConnectionPermit>,
    /// What only a session has whose client cannot send.
    pub(super) stream: Option<Box<Stream>>,
}

/// Joins that wait until an outbox is empty. Boxed, since hardly ever there is one.
#[derive(Default)]
pub(super) struct Waiters(pub(super) Vec<oneshot::Sender<()>>);

/// A stream's own: an event stream or a line stream.
pub(super) struct Stream {
    /// Who knows it may post commands for the session.
    pub(super) secret: Secret,
    /// The rooms of its URL, in the order of its cursors. A browser that comes back repeats the URL, so these are what an
    /// event's id speaks of, whatever else the session has joined.
    pub(super) rooms: Vec<UrlRoom>,
    /// When it ends, by the shard's clock.
    pub(super) ends_ms: u32,
}

/// A room of a stream's URL.
pub(super) struct UrlRoom {
    pub(super) name: Room,
    /// Whether the room has history, so that places in it have cursors.
    pub(super) is_numbered: bool,
    /// What the client has had, while it is not a member.
    pub(super) reached: Option<Cursor>,
}

impl Conn {
    /// Whether a message's own cursor is all that is to be said of where the session is: it names one room, and this
    /// is it. Others cannot share their room's frames.
    pub(super) fn shares_frames(&self, room: &Room) -> bool {
        match &self.stream {
            Some(stream) if self.shape == FrameShape::Event => {
                matches!(&stream.rooms[..], [only] if only.name == *room)
            }
            _ => true,
        }
    }
}

/// What the wheel is to look at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Timer {
    /// Ping, or give up.
    Keepalive(SessionRef),
    /// The oldest frame has waited for too long.
    Stale(SessionRef),
    /// A closing session has had its time.
    Closed(SessionRef),
    /// Posted commands that are not answered yet.
    Post(u32),
}

/// The sessions of a shard.
#[derive(Default)]
pub(super) struct Sessions {
    conns: Slab<Box<Conn>>,
    generations: u32,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.conns.len()
    }

    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> Conn) -> SessionRef {
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        let index = self.conns.insert(Box::new(make(generation))) as u32;
        SessionRef { index, generation }
    }

    pub(super) fn remove(&mut self, session: SessionRef) -> Option<Box<Conn>> {
        self.get(session)?;
        self.conns.try_remove(session.index as usize)
    }

    pub(super) fn at(&mut self, index: u32) -> Option<&mut Conn> {
        self.conns.get_mut(index as usize).map(|conn| &mut **conn)
    }

    /// The session, if it is still there and has not begun to close.
    pub(super) fn open(&mut self, session: SessionRef) -> Option<&mut Conn> {
        self.get(session).filter(|conn| conn.phase == Phase::Open)
    }

    /// The session, if it is still there.
    pub(super) fn get(&mut self, session: SessionRef) -> Option<&mut Conn> {
        self.at(session.index).filter(|conn| conn.generation == session.generation)
    }

    /// All that are open.
    pub(super) fn all_open(&self) -> impl Iterator<Item = (SessionRef, &Conn)> {
        let open = self.conns.iter().filter(|(_, conn)| conn.phase == Phase::Open);
        open.map(|(index, conn)| (SessionRef { index: index as u32, generation: conn.generation }, &**conn))
    }

    /// What sockets have refused to take, of all open sessions.
    pub(super) fn refused_bytes(&self) -> usize {
        self.all_open().filter(|(_, conn)| conn.blocked).map(|(_, conn)| conn.outbox.bytes()).sum()
    }

    /// Of those the one with the fullest outbox, and how full it is.
    pub(super) fn fullest(&self) -> Option<(SessionRef, usize)> {
        let blocked = self.all_open().filter(|(_, conn)| conn.blocked);
        blocked.map(|(who, conn)| (who, conn.outbox.bytes())).max_by_key(|(_, bytes)| *bytes)
    }
}

/// Whether a reason leaves the outbox's content worth sending.
pub(super) fn keeps_outbox(reason: CloseReason) -> bool {
    !matches!(reason, CloseReason::TooSlow | CloseReason::Silent | CloseReason::Gone)
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
