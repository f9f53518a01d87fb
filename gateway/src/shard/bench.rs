//! A shard with members and without clients, for the benchmark of the fan-out: the real inbox, feeds, batches and
//! outboxes, and one socket that stands for all members' and is never written to. Called by `crate::bench` alone.

use super::{Opening, Shard, conn::FlushQueue};
use crate::{
    node::{Node, inbox::Inbox},
    policy::class::Class,
    protocol::FrameShape,
};
use bytes::Bytes;
use fanfare_broker::{Cursor, Delivery, Publication, Room, RoomEvent, Subscriber as _, SubscriberId};
use std::{rc::Rc, sync::Arc};
use tokio::net::TcpStream;

/// See the module's head.
pub(crate) struct Crowd {
    shard: Rc<Shard>,
    rooms: Vec<Room>,
    sessions: u32,
}

impl Crowd {
    pub(crate) fn new(node: Arc<Node>, inbox: Arc<Inbox>) -> Self {
        Self { shard: Shard::new(node, SubscriberId(0), inbox, Arc::default()), rooms: Vec::new(), sessions: 0 }
    }

    /// Opens a room whose last message was `head`, with so many members of its own.
    pub(crate) fn add(&mut self, room: Room, head: Option<Cursor>, members: u32, socket: &Rc<TcpStream>) {
        let plain: Vec<u32> = (0..members).map(|_| self.open(socket)).collect();
        let state = &mut *self.shard.state.borrow_mut();
        let (key, _) = state.rooms.find_or_make(&room, 0, || Class::BUILT_IN);
        if let Some(entry) = state.rooms.get_mut(key) {
            entry.feed.on_subscribed(head);
            entry.occupants = members;
            entry.plain[FrameShape::WebSocket as usize] = plain;
        }
        self.sessions += members;
        self.rooms.push(room);
    }

    fn open(&self, socket: &Rc<TcpStream>) -> u32 {
        self.shard.open(Rc::clone(socket), None, Opening::websocket(Bytes::new())).index
    }

    /// Puts a message for every room into the inbox, as the broker does.
    pub(crate) fn publish(&self, publication: &Publication) {
        for room in &self.rooms {
            let event = RoomEvent::Message(publication.clone());
            self.shard.inbox.deliver(Delivery { room: room.clone(), event });
        }
    }

    /// What the shard does with its inbox: each message through its room's feed into the room's batch, each batch into
    /// its members' outboxes. Nothing is written.
    pub(crate) fn pass(&self) {
        while !self.shard.inbox.is_empty() {
            self.shard.take_inbox();
        }
    }

    /// Empties the outboxes as if the sockets had taken everything; returns how many bytes that was.
    pub(crate) fn discard(&self) -> usize {
        let state = &mut *self.shard.state.borrow_mut();
        state.urgent.clear();
        state.bulk.clear();
        for index in 0..self.sessions {
            if let Some(conn) = state.sessions.at(index) {
                conn.queued_in = FlushQueue::None;
                conn.outbox.advance(conn.outbox.bytes(), 0);
            }
        }
        std::mem::take(&mut state.outbox_bytes)
    }
}
