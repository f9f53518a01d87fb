//! A shard with members and without clients, for the benchmark of the fan-out: the real inbox, feeds, batches and
//! outboxes, and one socket that stands for the sockets of all members and is never written to. Called by
//! `crate::bench` alone.

use super::{
    Opening, Shard,
    members::{CustomMember, PresenceEvents},
};
use crate::{
    node::{Node, inbox::Inbox},
    policy::class::Class,
    protocol::FrameShape,
};
use bytes::Bytes;
use fanfare_broker::{Cursor, Delivery, Publication, Room, RoomEvent, Subscriber as _, SubscriberId};
use smallvec::SmallVec;
use std::{rc::Rc, sync::Arc};
use tokio::net::TcpStream;

/// A shard whose rooms have members that no client stands for.
pub struct Crowd {
    shard: Rc<Shard>,
    rooms: Vec<Room>,
}

impl Crowd {
    pub(crate) fn new(node: Arc<Node>, inbox: Arc<Inbox>) -> Self {
        Self { shard: Shard::new(node, SubscriberId(0), inbox, Arc::default()), rooms: Vec::new() }
    }

    /// Adds a room whose last message was `head`, with this many members of its own.
    pub(crate) fn add(&mut self, name: Room, head: Option<Cursor>, members: u32, socket: &Rc<TcpStream>) {
        let opening = || Opening { shape: FrameShape::WebSocket, head: Bytes::new(), rooms: Vec::new() };
        let open = |_| self.shard.open(Rc::clone(socket), None, opening()).index;
        let sessions: Vec<u32> = (0..members).map(open).collect();
        let state = &mut *self.shard.state.borrow_mut();
        let room = state.rooms.insert(&name, Class::BUILT_IN, 0);
        if let Some(entry) = state.rooms.resolve(room) {
            entry.feed.on_subscribed(head);
            entry.occupants = members;
            for session in sessions {
                let (shape, excluded) = (FrameShape::WebSocket, SmallVec::new());
                entry.members.add(CustomMember {
                    session,
                    shape,
                    has_own_ids: false,
                    presence: PresenceEvents::No,
                    excluded,
                });
            }
        }
        self.rooms.push(name);
    }

    /// Puts a message for every room into the inbox, as the broker does.
    pub fn publish(&self, publication: &Publication) {
        for room in &self.rooms {
            let event = RoomEvent::Message(publication.clone());
            self.shard.inbox.deliver(Delivery { room: room.clone(), event });
        }
    }

    /// What the shard does with its inbox: each message through its room's feed into the room's batch, each batch into
    /// its members' outboxes. Nothing is written to a socket.
    pub fn pass(&self) {
        while !self.shard.inbox.is_empty() {
            self.shard.take_inbox();
        }
    }

    /// Empties the outboxes as if the sockets had taken everything; returns how many bytes that was.
    pub fn discard(&self) -> usize {
        self.shard.state.borrow_mut().outgoing.discard_all()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SessionRef, conn::FlushQueue};
    use bytes::Bytes;

    /// Hundreds of members of a large room that were behind were written to before a member of a small room.
    #[test]
    fn a_socket_that_was_full_went_before_all_others() {
        let (crowd, _runtime) = crate::bench::fan_out(1, 2).unwrap();
        crowd.discard();
        let state = &mut *crowd.shard.state.borrow_mut();
        let conn = state.outgoing.sessions.at(0).unwrap();
        (conn.blocked, conn.queued_in) = (true, FlushQueue::None);
        let full = SessionRef { index: 0, generation: conn.generation };
        state.queue(0, Bytes::from_static(b"behind"));
        state.outgoing.on_writable(full);
        state.queue(1, Bytes::from_static(b"in time"));
        assert_eq!([state.outgoing.next_to_flush(false), state.outgoing.next_to_flush(false)], [Some(1), Some(0)]);
    }
}
