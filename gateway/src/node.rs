//! What all shards of a process share: settings, the broker, the metrics. Read-only after the start, but for the
//! two switches that `drain.rs` owns.

use crate::{
    api::Buffer,
    auth::{OriginPolicy, PeerPolicy, Seat},
    class::Classes,
    drain::Drain,
    error::{ErrorCode, Refusal},
    leases::Leases,
    limits::Limits,
    metrics::Metrics,
    session::OutboxLimits,
    shard::Inbox,
};
use bytes::Bytes;
use fanfare_broker::{Broker, NodeId, Subscriber as _};
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
    /// HTTP publishes that wait for the backplane.
    pub(crate) buffer: Buffer,
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
    pub(crate) fn seat(&self, client: IpAddr) -> Result<Option<Seat>, Refusal> {
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

/// A number below `most`, by chance: what would come in one moment is spread by it.
pub(crate) fn by_chance(most: u64) -> u64 {
    getrandom::u64().unwrap_or_default() % most
}

/// Milliseconds since 1970, for time stamps that leave the process; never for timers.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
