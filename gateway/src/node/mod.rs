//! What all shards of a process share: settings, the broker, the metrics, the shards' inboxes. Built by `app` before
//! anything runs. After that only what these fields of [`Node`] hold inside changes, behind locks of their own or in
//! atomics: [`Drain`], [`Leases`], [`Buffer`], [`PeerPolicy`], the refused origins of [`OriginPolicy`], the inboxes and
//! the metrics.

pub(crate) mod buffer;
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
    protocol::{
        error::{ErrorCode, Refusal},
        native::MessageText,
    },
    session::OutboxLimits,
};
use buffer::Buffer;
use bytes::Bytes;
use drain::Drain;
use fanfare_broker::{
    Broker, HistoryQuery, NodeId, Page, Presence, PresenceDetail, Publication, Room, Subscriber as _,
};
use inbox::Inbox;
use leases::Leases;
use metrics::Metrics;
use std::{net::IpAddr, sync::Arc, time::Duration};

/// One gateway process, as its shards and its API see it.
pub(crate) struct Node {
    /// The process's id in the cluster, by which other nodes address it.
    pub(crate) id: NodeId,
    /// The name in `welcome`, metrics and logs.
    pub(crate) name: String,
    /// What clients repeat as `?n=` so that nginx leads them here again.
    pub(crate) route: String,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) classes: Classes,
    pub(crate) limits: Limits,
    pub(crate) outbox_limits: OutboxLimits,
    /// Bytes that may wait for all clients of one shard together; `usize::MAX`: no limit.
    pub(crate) shard_outbox_bytes: usize,
    pub(crate) origins: OriginPolicy,
    pub(crate) peers: PeerPolicy,
    /// The presence of polling clients.
    pub(crate) leases: Leases,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
    /// HTTP publishes with `?buffer=`.
    pub(crate) buffer: Buffer,
    /// The time over which a drain is spread.
    pub(crate) drain_window: Duration,
    /// The queue into each shard, by the shard's number.
    pub(crate) inboxes: Vec<Arc<Inbox>>,
}

impl Node {
    /// A permit for one more connection of this client address; `None` if connections are not limited.
    /// An error: the address has as many as it may.
    pub(crate) fn permit_connection(&self, client: IpAddr) -> Result<Option<ConnectionPermit>, Refusal> {
        self.peers.permit(client).map_err(|()| {
            self.metrics.rate_limited_connections.inc();
            Refusal::new(ErrorCode::RateLimited, "too many connections from this address").retry_after(10_000)
        })
    }

    /// How many of [`Node::shard_outbox_bytes`] are for answers to polls.
    pub(crate) fn shard_answer_bytes(&self) -> usize {
        self.shard_outbox_bytes / 4
    }

    /// A page of a room's history, of which all messages have half an outbox at most, so that messages which come meanwhile
    /// find space.
    pub(crate) async fn history(&self, room: &Room, query: HistoryQuery) -> Result<Page, Refusal> {
        let retention = self.classes.of(room.as_str()).history.ok_or_else(Refusal::history_off)?;
        let mut page = self.broker.history(room, retention, query).await?;
        let size_of = |publication: &Publication| MessageText::new(room, publication).size(publication);
        page.cut(self.outbox_limits.bytes / 2, query.since.is_none(), size_of);
        Ok(page)
    }

    /// Who is in a room.
    pub(crate) async fn presence(&self, room: &Room) -> Result<Arc<Presence>, Refusal> {
        if !self.classes.of(room.as_str()).presence {
            return Err(Refusal::presence_off());
        }
        Ok(self.broker.presence(room, PresenceDetail::Members).await?)
    }

    /// Puts a control message into a shard's inbox; `false` if there is no such shard.
    pub(crate) fn send_to_shard(&self, shard: u16, message: Bytes) -> bool {
        self.inboxes.get(usize::from(shard)).map(|inbox| inbox.on_control(message)).is_some()
    }
}
