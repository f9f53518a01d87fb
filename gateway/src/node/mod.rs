//! What all shards of a process share: settings, the broker, the metrics. Read-only after the start, but for the
//! two switches that `drain.rs` owns.

pub(crate) mod drain;
pub(crate) mod inbox;
pub(crate) mod leases;
pub(crate) mod metrics;

use crate::{
    policy::{
        class::Classes,
        limits::Limits,
        origin::OriginPolicy,
        peer::{ConnectionPermit, PeerPolicy},
    },
    protocol::error::{ErrorCode, Refusal},
    session::OutboxLimits,
};
use bytes::Bytes;
use drain::Drain;
use fanfare_broker::{Broker, NodeId, Subscriber as _};
use inbox::Inbox;
use leases::Leases;
use metrics::Metrics;
use std::{net::IpAddr, sync::Arc, time::Duration};

/// See the module's head.
pub(crate) struct Node {
    /// Where other nodes find this process.
    pub(crate) id: NodeId,
    /// As it stands in `welcome`, metrics and logs.
    pub(crate) name: String,
    /// What clients repeat as `?n=` so that nginx leads them here again.
    pub(crate) route: String,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) classes: Classes,
    pub(crate) limits: Limits,
    pub(crate) outbox_limits: OutboxLimits,
    /// What may wait for all clients of one shard; `usize::MAX`: no limit.
    pub(crate) shard_outbox_bytes: usize,
    pub(crate) origins: OriginPolicy,
    pub(crate) peers: PeerPolicy,
    /// Who is present by polling.
    pub(crate) leases: Leases,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
    /// The time over which a drain is spread.
    pub(crate) drain_window: Duration,
    /// The way into each shard.
    pub(crate) inboxes: Vec<Arc<Inbox>>,
}

impl Node {
    /// A place for one more connection of this address.
    ///
    /// # Errors
    /// It has as many as it may.
    pub(crate) fn seat(&self, client: IpAddr) -> Result<Option<ConnectionPermit>, Refusal> {
        self.peers.seat(client).map_err(|()| {
            self.metrics.rate_limited_connections.inc();
            Refusal::new(ErrorCode::RateLimited, "too many connections from this address").retry_after(10_000)
        })
    }

    /// Puts a note into a shard's inbox; `false` if there is no such shard.
    pub(crate) fn send_to_shard(&self, shard: u16, message: Bytes) -> bool {
        self.inboxes.get(usize::from(shard)).map(|inbox| inbox.on_control(message)).is_some()
    }
}
