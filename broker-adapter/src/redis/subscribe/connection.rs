//! `PubSubConnection`: one subscriber connection as the rest of the broker sees it. Calls only change what the
//! connection is interested in; `driver.rs` sends the commands. What Redis pushes is handed to the subscribers of its
//! room in the connection's own task and without blocking. Never publishes.

use crate::{
    Retention, Room, RoomEvent, SubscriberId, envelope,
    envelope::Envelope,
    redis::{ConnectionStatus, HeadResult, Interest, MovedRooms, NodeContext, Partition},
};
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::{Notify, oneshot};

/// A connection over which this node follows rooms.
pub(crate) struct PubSubConnection {
    pub(crate) status: Arc<ConnectionStatus>,
    pub(crate) context: Arc<NodeContext>,
    /// What the connection follows.
    pub(crate) interest: Mutex<Interest>,
    /// The interest's queue has something new.
    pub(crate) queued: Notify,
    /// Redis refuses one of this node's channels for control messages.
    pub(crate) is_refused: AtomicBool,
}

impl PubSubConnection {
    pub(crate) fn new(status: Arc<ConnectionStatus>, context: Arc<NodeContext>) -> Self {
        Self { status, context, interest: Mutex::default(), queued: Notify::new(), is_refused: AtomicBool::new(false) }
    }

    /// Follows a room from now on. The receiver gets the room's head once the room is subscribed.
    pub(crate) fn follow(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> oneshot::Receiver<HeadResult> {
        let (reply, result) = oneshot::channel();
        self.change(|interest| interest.follow(who, room, retention, reply));
        result
    }

    pub(crate) fn unfollow(&self, who: SubscriberId, room: &Room) {
        self.change(|interest| interest.unfollow(who, room));
    }

    /// Reads a room's head. Redis begins a new epoch if it does not know the room.
    pub(crate) fn head(&self, room: &Room, retention: Retention) -> oneshot::Receiver<HeadResult> {
        let (reply, result) = oneshot::channel();
        self.change(|interest| interest.head(room, retention, reply));
        result
    }

    /// Forgets the rooms of partitions that have moved, and returns who follows them.
    pub(crate) fn release(&self, moves: impl Fn(Partition) -> bool) -> MovedRooms {
        self.interest.lock().release(|room| moves(Partition::of(room)))
    }

    /// Follows rooms that another connection has released.
    pub(crate) fn adopt(&self, rooms: MovedRooms) {
        self.change(|interest| interest.adopt(rooms));
    }

    /// Forgets everything. Callers that still wait for a head get an error.
    pub(crate) fn close(&self) {
        *self.interest.lock() = Interest::default();
    }

    fn change(&self, change: impl FnOnce(&mut Interest)) {
        change(&mut self.interest.lock());
        self.queued.notify_one();
    }

    /// Takes what Redis has pushed over the connection with this number.
    pub(crate) fn receive(&self, number: u64, push: PushInfo) {
        if !matches!(push.kind, PushKind::Message | PushKind::SMessage) {
            return;
        }
        let NodeContext { builder, subscribers, unreadable, .. } = &*self.context;
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) = (parts.next(), parts.next()) else {
            unreadable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        match (builder.keys.room_of(&channel), envelope::decode(&Bytes::from(bytes))) {
            (Some(room), Some(Envelope::Room(event))) => {
                self.interest.lock().deliver(number, room, &event, subscribers);
            }
            (Some(room), Some(Envelope::Messages(list))) => {
                let mut interest = self.interest.lock();
                for publication in list {
                    interest.deliver(number, room, &RoomEvent::Message(publication), subscribers);
                }
            }
            (None, Some(Envelope::Control(message))) => subscribers.iter().for_each(|s| s.on_control(message.clone())),
            _ => drop(unreadable.fetch_add(1, Ordering::Relaxed)),
        }
    }
}
