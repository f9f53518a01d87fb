//! `NodeContext`: what all connections of this node to one address have in common.

use crate::{
    Subscriber,
    redis::{CommandBuilder, RedisConfig, Tasks, errors::Refusals},
};
use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64},
};
use tokio::sync::Notify;

/// What all masters of one address have in common.
#[derive(Clone)]
pub(crate) struct NodeContext {
    pub(crate) config: RedisConfig,
    pub(crate) builder: CommandBuilder,
    pub(crate) subscribers: Arc<[Arc<dyn Subscriber>]>,
    /// Counts the node's pushes that cannot be read.
    pub(crate) unreadable: Arc<AtomicU64>,
    /// Numbers the node's messages.
    pub(crate) numbers: Arc<AtomicU64>,
    pub(crate) events: Arc<TopologyEvents>,
    pub(crate) tasks: Tasks,
    pub(crate) refusals: Arc<Refusals>,
}

/// What the tasks that look after one address tell each other.
#[derive(Debug, Default)]
pub(crate) struct TopologyEvents {
    /// How many nodes use the address, by the last heartbeat; 0 before the first.
    pub(crate) nodes: AtomicU32,
    /// A reply has shown that a room is not at the master that the routes say.
    pub(crate) refresh: Notify,
    /// A connection is up again, or for the first time.
    pub(crate) reconnected: Notify,
}
