//! `Deliveries`: reads what Redis pushes over one subscriber connection and hands it to the subscribers of the room, in
//! the connection's own task and without blocking.

use crate::{
    BrokerError, Cursor, RoomEvent, Subscriber,
    envelope::{self, Envelope},
    redis::{keys::Keys, subscribe::interest::Interest},
};
use bytes::Bytes;
use redis::{PushInfo, PushKind, Value};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Hands pushes to the subscribers that follow their rooms.
pub(crate) struct Deliveries {
    interest: Mutex<Interest>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    pub(crate) keys: Keys,
    /// Counts the node's pushes that cannot be read.
    unreadable: Arc<AtomicU64>,
}

impl Deliveries {
    pub(crate) fn new(subscribers: Arc<[Arc<dyn Subscriber>]>, keys: Keys, unreadable: Arc<AtomicU64>) -> Self {
        Self { interest: Mutex::default(), subscribers, keys, unreadable }
    }

    /// What the connection follows.
    pub(crate) fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what Redis has pushed over the connection with this number.
    pub(crate) fn receive(&self, connection: u64, push: PushInfo) {
        if !matches!(push.kind, PushKind::Message | PushKind::SMessage) {
            return;
        }
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) = (parts.next(), parts.next()) else {
            return self.count_unreadable();
        };
        match (self.keys.room_of(&channel), envelope::decode(&Bytes::from(bytes))) {
            (Some(room), Ok(Envelope::Room(event))) => {
                self.interest().deliver(connection, room, &event, &self.subscribers);
            }
            (Some(room), Ok(Envelope::Messages(list))) => {
                let mut interest = self.interest();
                for publication in list {
                    interest.deliver(connection, room, &RoomEvent::Message(publication), &self.subscribers);
                }
            }
            (None, Ok(Envelope::Control(message))) => {
                self.subscribers.iter().for_each(|s| s.on_control(message.clone()));
            }
            _ => self.count_unreadable(),
        }
    }

    /// Completes the oldest batch in flight with its heads: [`Interest::settle`].
    pub(crate) fn settle(&self, heads: Vec<Result<Cursor, BrokerError>>) -> bool {
        self.interest().settle(heads, &self.subscribers)
    }

    fn count_unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}
