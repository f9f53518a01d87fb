//! The Redis broker: many nodes share one Redis, or several, and every room has one order.
//!
//! From the outside inwards; a file uses only what stands below it:
//!
//! - `config.rs` has the settings; `context.rs` is what all connections of the node have in common.
//! - `deployment.rs` is everything that belongs to one address: a server, sentinels or a cluster.
//! - `presence/` keeps the presence of this node's sessions in Redis, and removes the members of dead nodes.
//! - `routes.rs` knows which master has which rooms; `master.rs` is what is kept with one master.
//! - `write/`, `subscribe/`, `read/` are one master's connections: for what this node writes, receives, and reads.
//! - `connection/` keeps one connection open, and decides when to give it up.
//! - `topology/` asks sentinels and clusters where the masters are.
//! - `commands.rs`, `scripts/` build the commands; the scripts run in Redis.
//! - `tasks.rs` is the broker's thread, on which all of this runs.
//! - `address.rs`, `keys.rs`, `errors.rs` are names and values: servers, keys, memories, errors.
//!
//! Callers on other threads get answers only. The client library's own
//! resubscription and connection manager are not used: they lose subscriptions and stall for seconds.

mod address;
mod commands;
mod config;
mod connection;
mod context;
mod deployment;
mod errors;
mod keys;
mod master;
mod presence;
mod read;
mod routes;
mod scripts;
mod subscribe;
mod tasks;
#[cfg(test)]
mod tests;
mod topology;
mod walk;
mod write;

// What the files below use of each other.
use self::{
    address::{Address, AddressKind},
    commands::{CommandBuilder, HeartbeatTimes, Over},
    connection::{
        keep::Driver,
        open::OpenConnection,
        status::{ConnectionStatus, Signals},
        supervisor::{CONNECT_MAX, GRACE, RETRY_MAX},
    },
    context::{NodeContext, TopologyEvents},
    deployment::Deployment,
    errors::{RefusalClass, Remedy},
    keys::{Fence, HOME, Keys, LEASES, PARTITIONS, Part, Partition},
    master::Master,
    presence::{heartbeat::Heartbeat, roster::Loss, roster::Roster, sweep::Sweeper},
    read::{MemberPage, ReadPool},
    routes::Routes,
    scripts::Scripts,
    subscribe::{
        connection::PubSubConnection,
        driver::SubscriberDriver,
        interest::{ComparisonPace, HeadResult, Interest, MovedRooms},
    },
    tasks::{BrokerThread, Tasks},
    topology::{
        cluster::{Assignment, ClusterTopology},
        query::{QueryClient, REFRESH_EVERY},
        target::{Sentinels, Target},
    },
    write::{
        command::{
            InFlight, Membership, Messages, PendingPublish, PresenceChange, PresenceCommand, PresenceEntry,
            QueuedCommand, WriteCommand,
        },
        driver::PublisherDriver,
        publisher::Publisher,
    },
};
pub use config::{OnPanic, RedisConfig};
pub use errors::{ConfigError, ConnectError};

use crate::{
    Broker, BrokerError, BrokerFuture, Cursor, HistoryQuery, NodeId, NodeTarget, Page, Presence, PresenceDetail,
    PresenceUpdate, Publish, Reply, Retention, Room, RoomList, RoomQuery, Status, Subscriber, SubscriberId, envelope,
};
use ::redis::Value;
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A broker over one or several Redis, among which rooms are divided by their partitions.
pub struct RedisBroker {
    node: NodeId,
    deployments: Arc<[Deployment]>,
    /// The index in `deployments` of each partition's deployment.
    by_partition: Vec<usize>,
    unreadable: Arc<AtomicU64>,
    tasks: Tasks,
    _thread: BrokerThread,
}

impl RedisBroker {
    /// Connects once; [`SubscriberId`] is the index into `subscribers`. If Redis is away, the call fails, and a caller
    /// who wants to wait for Redis calls again.
    ///
    /// # Errors
    /// [`ConnectError`] of the first connection that could not be made.
    pub async fn connect(
        config: RedisConfig,
        subscribers: Vec<Arc<dyn Subscriber>>,
    ) -> Result<Arc<Self>, ConnectError> {
        config.check()?;
        // Fails if the process has chosen a provider before; that one is used then.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let thread = BrokerThread::start()?;
        let tasks = thread.tasks(config.on_panic);
        let (node, is_cluster) = (NodeId::random(), config.is_cluster());
        let scripts = Arc::new(Scripts::new(is_cluster));
        let keys = |database| Keys::new(&config.prefix, database, is_cluster);
        let context = NodeContext {
            config: config.clone(),
            builder: CommandBuilder { keys: keys(0), node, scripts },
            subscribers: subscribers.into(),
            unreadable: Arc::default(),
            numbers: Arc::new(AtomicU64::new(1)),
            events: Arc::default(),
            tasks: tasks.clone(),
            refusals: Arc::default(),
        };
        let names: Vec<String> = config.addresses.iter().map(|address| address.name()).collect();
        let connect = |(address, name): (Address, &String)| {
            let of = if names.len() > 1 { format!(" of {name}") } else { String::new() };
            let builder = CommandBuilder { keys: keys(address.database()), ..context.builder.clone() };
            let context = Arc::new(NodeContext { events: Arc::default(), builder, ..context.clone() });
            async move { Deployment::connect(context, &address, &of).await }
        };
        let connecting: Vec<_> = config.addresses.clone().into_iter().zip(&names).map(connect).collect();
        let deployments = tasks.ask(async { Ok(try_join_all(connecting).await) }).await;
        let deployments = deployments.map_err(|why| ConnectError::Thread(why.to_string()))??.into();
        let by_partition = Partition::all().map(|partition| partition.choose(&names)).collect();
        let unreadable = context.unreadable;
        Ok(Arc::new(Self { node, deployments, by_partition, unreadable, tasks, _thread: thread }))
    }

    fn deployment(&self, room: &Room) -> &Deployment {
        &self.deployments[self.by_partition[usize::from(Partition::of(room).0)]]
    }

    fn master(&self, room: &Room) -> Arc<Master> {
        self.deployment(room).routes.master(room)
    }

    fn masters(&self) -> impl Iterator<Item = Arc<Master>> {
        self.deployments.iter().flat_map(|deployment| deployment.routes.masters())
    }

    /// Merges the pages of all masters. If one of them cannot be read, the call fails: the list would look complete.
    async fn list(deployments: Arc<[Deployment]>, query: RoomQuery) -> Result<RoomList, BrokerError> {
        let masters = deployments.iter().flat_map(|deployment| deployment.routes.masters_with_partitions());
        let query = &query;
        let pages = masters.map(|(master, partitions)| async move { master.reads.rooms(query, &partitions).await });
        let pages = try_join_all(pages).await?;
        let more = pages.iter().any(|page| page.more);
        let mut rooms: Vec<Room> = pages.into_iter().flat_map(|page| page.rooms).collect();
        rooms.sort_unstable();
        // While a slot moves, a room may be in the lists of both masters.
        rooms.dedup();
        let limit = query.limit.min(read::ROOMS_MAX);
        let more = more || rooms.len() > limit;
        rooms.truncate(limit);
        Ok(RoomList { rooms, more })
    }
}

impl Broker for RedisBroker {
    fn publish(&self, publish: Publish, reply: Reply) {
        self.master(&publish.room).publisher.publish(publish, reply);
    }

    fn subscribe(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> BrokerFuture<'_, Option<Cursor>> {
        let follow = |master: &Master, partition| master.connection(partition).follow(who, room, retention);
        let head = self.deployment(room).routes.with(room, follow);
        Box::pin(async { head.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn unsubscribe(&self, who: SubscriberId, room: &Room) {
        let unfollow = |master: &Master, partition| master.connection(partition).unfollow(who, room);
        self.deployment(room).routes.with(room, unfollow);
    }

    fn history(&self, room: &Room, retention: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page> {
        let (master, room) = (self.master(room), room.clone());
        self.tasks.ask(async move { master.page(&room, retention, query).await })
    }

    fn update_presence(&self, room: &Room, update: PresenceUpdate) -> BrokerFuture<'_, ()> {
        let written = self.deployment(room).update_presence(room, update);
        Box::pin(async { written.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn presence(&self, room: &Room, detail: PresenceDetail) -> BrokerFuture<'_, Arc<Presence>> {
        let (master, room) = (self.master(room), room.clone());
        self.tasks.ask(async move { master.reads.presence(&room, detail, master.publisher.status.fence()).await })
    }

    fn rooms(&self, query: RoomQuery) -> BrokerFuture<'_, RoomList> {
        self.tasks.ask(Self::list(Arc::clone(&self.deployments), query))
    }

    /// Sends over the first master that is up, because every node is subscribed at all of them.
    fn send_control(&self, target: NodeTarget, message: Bytes) -> BrokerFuture<'_, bool> {
        let masters: Vec<_> = self.masters().collect();
        let master = masters.iter().find(|master| master.publisher.status.is_up()).unwrap_or(&masters[0]);
        let partition = master.partitions.borrow().first().copied().unwrap_or(HOME);
        let builder = &master.publisher.context.builder;
        let channel = match target {
            NodeTarget::All => builder.keys.control(partition),
            NodeTarget::One(node) => builder.keys.control_to(node, partition),
        };
        let sent = master.publisher.submit(builder.send(&channel, &envelope::control(self.node, &message)));
        // The reply of PUBLISH is the number of subscribers.
        Box::pin(async { sent.await.map(|subscribers| subscribers != Value::Int(0)) })
    }

    fn availability(&self, room: &Room) -> Result<(), BrokerError> {
        self.master(room).availability()
    }

    /// `up`: this node can publish into every room and receives what others publish.
    fn status(&self) -> Status {
        let mut status = Status {
            node: self.node,
            up: true,
            reconnects: 0,
            in_flight: 0,
            rooms: 0,
            unreadable: self.unreadable.load(Ordering::Relaxed),
        };
        self.masters().for_each(|master| master.add_to(&mut status));
        status
    }

    fn close(&self) -> BrokerFuture<'_, ()> {
        let deployments = Arc::clone(&self.deployments);
        self.tasks.ask(async move {
            join_all(deployments.iter().map(Deployment::close)).await;
            Ok(())
        })
    }
}
