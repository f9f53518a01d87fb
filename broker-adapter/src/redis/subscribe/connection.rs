//! `PubSubConnection`: one subscriber connection as the rest of the broker sees it. Calls only change what the
//! connection is interested in; `driver.rs` sends the commands. Never publishes.

use crate::{
    NodeId, Retention, Room, SubscriberId,
    redis::{
        connection::status::ConnectionStatus,
        keys::{Keys, Partition, Partitions},
        subscribe::{
            deliveries::Deliveries,
            interest::{Interest, JoinResult, MovedRooms, Pace},
        },
    },
};
use std::sync::{Arc, PoisonError};
use tokio::sync::{Notify, oneshot};

/// A connection over which this node follows rooms.
pub(crate) struct PubSubConnection {
    pub(crate) status: Arc<ConnectionStatus>,
    pub(crate) deliveries: Deliveries,
    pub(crate) pace: Pace,
    /// `Some` on the one connection of a master that receives control messages.
    pub(crate) controls: Option<ControlChannels>,
    /// The interest's queue has something new.
    pub(crate) queued: Notify,
    /// The master has more partitions in which control messages may come.
    pub(crate) more_partitions: Notify,
}

/// Which channels of control messages a master has for this node.
pub(crate) struct ControlChannels {
    pub(crate) node: NodeId,
    pub(crate) partitions: Partitions,
}

impl ControlChannels {
    pub(crate) fn names(&self, keys: &Keys) -> Vec<String> {
        keys.controls(self.node, &self.partitions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PubSubConnection {
    pub(crate) fn new(
        status: Arc<ConnectionStatus>,
        deliveries: Deliveries,
        pace: Pace,
        controls: Option<ControlChannels>,
    ) -> Self {
        Self { status, deliveries, pace, controls, queued: Notify::new(), more_partitions: Notify::new() }
    }

    /// The rooms that are followed.
    pub(crate) fn rooms(&self) -> usize {
        self.deliveries.interest().rooms()
    }

    /// Follows a room from now on. The receiver gets the room's head once deliveries are certain.
    pub(crate) fn follow(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> oneshot::Receiver<JoinResult> {
        let (reply, result) = oneshot::channel();
        self.change(|interest| interest.follow(who, room, retention, reply));
        result
    }

    pub(crate) fn unfollow(&self, who: SubscriberId, room: &Room) {
        self.change(|interest| interest.unfollow(who, room));
    }

    /// Reads a room's head. Redis begins a new epoch if it does not know the room.
    pub(crate) fn head(&self, room: &Room, retention: Retention) -> oneshot::Receiver<JoinResult> {
        let (reply, result) = oneshot::channel();
        self.change(|interest| interest.head(room, retention, reply));
        result
    }

    /// Forgets the rooms of a partition that has moved, and returns who follows them.
    pub(crate) fn release(&self, partition: Partition) -> MovedRooms {
        self.deliveries.interest().release(|room| Partition::of(room) == partition)
    }

    /// Goes on with rooms that another connection has released.
    pub(crate) fn adopt(&self, rooms: MovedRooms) {
        self.change(|interest| interest.adopt(rooms));
    }

    /// Forgets everything. Joins without a reply so far fail.
    pub(crate) fn close(&self) {
        *self.deliveries.interest() = Interest::default();
    }

    fn change(&self, change: impl FnOnce(&mut Interest)) {
        change(&mut self.deliveries.interest());
        self.queued.notify_one();
    }
}
