//! The Redis broker: many nodes, one order per room, everything shared in one Redis.
//!
//! - `address.rs`, `config.rs`: what can be named: servers, sentinels, a cluster; several divide the rooms among them.
//! - `site.rs`, `routes.rs`: what belongs to one address; which of its masters has which rooms.
//! - `store.rs`: what is kept with one master:
//!   - `publisher.rs`, `batch.rs`: one command connection for everything that this node writes, in order, in pipelines.
//!   - `lane.rs`, `interest.rs`: subscriber connections; a room's messages come over one of them.
//!   - `reads.rs`, `flights.rs`: the rare reads, over a pool; what many ask for at once is read once.
//! - `supervisor.rs`, `link.rs`: how a connection is judged and kept.
//! - `target.rs`, `cluster.rs`: where the masters are, as sentinels and clusters say.
//! - `script.rs`, `scripts/`, `names.rs`: what is said to Redis, and what keys are called.
//! - `presence.rs`, `keeper.rs`: this node's attendances, its heartbeat, and the members of dead nodes.
//!
//! Tasks run on the runtime of whoever called [`RedisBroker::connect`] and end with the broker. It never uses the
//! client library's own resubscription or connection manager: they lose subscriptions and stall for seconds.

mod address;
mod commands;
mod config;
mod connection;
mod deployment;
mod keys;
mod master;
mod presence;
mod read;
mod routes;
mod subscribe;
#[cfg(test)]
mod tests;
mod topology;
mod write;

pub use config::{Config, ConfigError};
pub use connection::keep::ConnectError;

use crate::{
    Broker, BrokerError, BrokerFuture, Cursor, HistoryQuery, NodeId, NodeTarget, Page, Presence, PresenceDetail,
    PresenceUpdate, Publish, Reply, Retention, Room, RoomList, RoomQuery, Status, Subscriber, SubscriberId, envelope,
};
use ::redis::Value;
use bytes::Bytes;
use commands::Scripts;
use deployment::Site;
use futures_util::future::{join_all, try_join_all};
use keys::{HOME, Names, Partition};
use master::{Base, Store};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// See the module's head.
pub struct RedisBroker {
    node: NodeId,
    names: Names,
    sites: Vec<Site>,
    /// By partition, into `sites`.
    places: Vec<usize>,
    unreadable: Arc<AtomicU64>,
}

impl RedisBroker {
    /// Connects once; [`SubscriberId`] is the index into `subscribers`. A caller that is willing to wait for Redis
    /// calls again.
    ///
    /// # Errors
    /// [`ConnectError`] of the first connection that could not be made.
    pub async fn connect(config: Config, subscribers: Vec<Arc<dyn Subscriber>>) -> Result<Arc<Self>, ConnectError> {
        config.check()?;
        // Fails if it has been chosen before, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (node, cluster) = (NodeId::random(), config.is_cluster());
        let names = if cluster { Names::in_cluster(&config.prefix) } else { Names::new(&config.prefix) };
        let base = Base {
            config: config.clone(),
            node,
            names: names.clone(),
            scripts: Scripts::of(cluster),
            subscribers: subscribers.into(),
            unreadable: Arc::default(),
            numbers: Arc::new(AtomicU64::new(1)),
            bell: Arc::default(),
        };
        let known: Vec<String> = config.addresses.iter().map(|address| address.name()).collect();
        let connecting = config.addresses.iter().zip(&known).map(|(address, name)| {
            let of = if known.len() > 1 { format!(" of {name}") } else { String::new() };
            let base = Base { bell: Arc::default(), ..base.clone() };
            async move { Site::connect(base, address, &of).await }
        });
        let sites = try_join_all(connecting).await?;
        let places = Partition::all().map(|partition| partition.place(&known)).collect();
        Ok(Arc::new(Self { node, names, sites, places, unreadable: base.unreadable }))
    }

    fn site(&self, room: &Room) -> &Site {
        &self.sites[self.places[usize::from(Partition::of(room).0)]]
    }

    fn store(&self, room: &Room) -> Arc<Store> {
        self.site(room).routes.store(room)
    }

    fn stores(&self) -> impl Iterator<Item = Arc<Store>> {
        self.sites.iter().flat_map(|site| site.routes.stores())
    }

    /// Every store's page, merged. Without one of them there is none: it would look complete.
    async fn list(&self, query: RoomQuery) -> Result<RoomList, BrokerError> {
        let shares = self.sites.iter().flat_map(|site| site.routes.shares());
        let query = &query;
        let pages = shares.map(|(store, partitions)| async move { store.reads.rooms(query, &partitions).await });
        let pages = try_join_all(pages).await?;
        let more = pages.iter().any(|page| page.more);
        let mut rooms: Vec<Room> = pages.into_iter().flat_map(|page| page.rooms).collect();
        rooms.sort_unstable();
        rooms.dedup();
        let limit = query.limit.min(read::ROOMS_MAX);
        let more = more || rooms.len() > limit;
        rooms.truncate(limit);
        Ok(RoomList { rooms, more })
    }
}

impl Broker for RedisBroker {
    fn publish(&self, publish: Publish, reply: Reply) {
        let site = self.site(&publish.room);
        site.routes.store(&publish.room).publisher.publish(publish, reply);
    }

    fn subscribe(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> BrokerFuture<'_, Option<Cursor>> {
        let follow = |store: &Store, partition| store.lane(partition).follow(who, room, retention);
        let joined = self.site(room).routes.with(room, follow);
        Box::pin(async { joined.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn unsubscribe(&self, who: SubscriberId, room: &Room) {
        self.site(room).routes.with(room, |store, partition| store.lane(partition).unfollow(who, room));
    }

    fn history(&self, room: &Room, retention: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page> {
        let room = room.clone();
        Box::pin(async move { self.store(&room).page(&room, retention, query).await })
    }

    fn update_presence(&self, room: &Room, attendance: PresenceUpdate) -> BrokerFuture<'_, ()> {
        let written = self.site(room).update_presence(room, attendance);
        Box::pin(async { written.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn presence(&self, room: &Room, detail: PresenceDetail) -> BrokerFuture<'_, Presence> {
        let room = room.clone();
        Box::pin(async move {
            let store = self.store(&room);
            store.reads.presence(&room, detail, store.publisher.link.fence().as_ref()).await
        })
    }

    fn rooms(&self, query: RoomQuery) -> BrokerFuture<'_, RoomList> {
        Box::pin(self.list(query))
    }

    /// Over the first master that is up: every node listens to all of them.
    fn send_control(&self, target: NodeTarget, message: Bytes) -> BrokerFuture<'_, bool> {
        let stores: Vec<_> = self.stores().collect();
        let over = stores.iter().find(|store| store.publisher.link.is_up()).unwrap_or(&stores[0]);
        let partition = over.first_partition().unwrap_or(HOME);
        let channel = match target {
            NodeTarget::All => self.names.control(partition),
            NodeTarget::One(node) => self.names.node(node, partition),
        };
        let told = over.publisher.send_control(&channel, &envelope::control(self.node, &message));
        // PUBLISH answers with the number of its receivers.
        Box::pin(async { told.await.map(|receivers| receivers != Value::Int(0)) })
    }

    fn is_up(&self, room: &Room) -> bool {
        self.store(room).is_up()
    }

    /// `up`: this node can publish everywhere and hears what others publish.
    fn status(&self) -> Status {
        let mut status = Status {
            node: self.node,
            up: true,
            reconnects: 0,
            in_flight: 0,
            rooms: 0,
            unreadable: self.unreadable.load(Ordering::Relaxed),
        };
        for store in self.stores() {
            status.up &= store.is_up();
            status.reconnects += store.reconnects();
            status.in_flight += store.in_flight();
            status.rooms += store.rooms();
        }
        status
    }

    fn close(&self) -> BrokerFuture<'_, ()> {
        Box::pin(async {
            join_all(self.sites.iter().map(Site::close)).await;
            Ok(())
        })
    }
}
