//! What all shards of a process share: settings, the broker, the metrics. Read-only after the start, but for the
//! two switches that `drain.rs` owns.

use crate::{
    api::Buffer,
    auth::{OriginPolicy, PeerPolicy},
    class::Classes,
    drain::Drain,
    limits::Limits,
    metrics::Metrics,
    session::OutboxLimits,
};
use fanfare_broker::Broker;
use std::sync::Arc;

/// See the module's head.
pub(crate) struct Node {
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
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
}

/// Milliseconds since 1970, for time stamps that leave the process; never for timers.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
