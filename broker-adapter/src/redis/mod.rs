//! The Redis broker: many nodes, one order per room, everything shared in one Redis.
//!
//! - `publisher.rs`, `batch.rs`: one command connection for everything that this node writes, in order, in pipelines.
//! - `lane.rs`, `interest.rs`: subscriber connections; a room's messages come over one of them.
//! - `supervisor.rs`, `link.rs`: how a connection is judged and kept.
//! - `script.rs`, `scripts/`, `names.rs`: what is said to Redis, and what keys are called.
//! - `presence.rs`, `keeper.rs`: this node's attendances, its heartbeat, and the members of dead nodes.
//! - `reads.rs`, `flights.rs`: the rare reads, over a pool; what many ask for at once is read once.
//!
//! Tasks run on the runtime of whoever called [`RedisBroker::connect`] and end with the broker. It never uses the
//! client library's own resubscription or connection manager: they lose subscriptions and stall for seconds.

mod batch;
mod config;
mod flights;
mod interest;
mod keeper;
mod lane;
mod link;
mod names;
mod presence;
mod publisher;
mod reads;
mod script;
mod supervisor;
#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError};
pub use link::ConnectError;

use crate::{
    Attendance, Broker, BrokerError, Cursor, Detail, HistoryQuery, Later, NodeId, NodeTarget, Offset, Page, Presence,
    Publish, Reply, Retention, Room, RoomList, RoomQuery, Status, Subscriber, SubscriberId, envelope,
};
use bytes::Bytes;
use interest::Pace;
use keeper::Keeper;
use lane::{Common, Lane, Rails};
use names::{Names, Partition};
use presence::Roster;
use publisher::Publisher;
use reads::Reads;
use script::{Fence, Maker};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// How long a read may wait for the head of a room that Redis has forgotten.
const HEAD_MAX: Duration = Duration::from_secs(2);

/// See the module's head.
pub struct RedisBroker {
    node: NodeId,
    names: Names,
    publisher: Arc<Publisher>,
    lanes: Vec<Arc<Lane>>,
    roster: Arc<Roster>,
    reads: Arc<Reads>,
    keeper: Arc<Keeper>,
    unreadable: Arc<AtomicU64>,
    /// Ends the tasks, also by being dropped.
    stop: watch::Sender<bool>,
}

impl RedisBroker {
    /// Connects once; [`SubscriberId`] is the index into `subscribers`. A caller that is willing to wait for Redis
    /// calls again.
    ///
    /// # Errors
    /// [`ConnectError`] of the first connection that could not be made.
    pub async fn connect(config: Config, subscribers: Vec<Arc<dyn Subscriber>>) -> Result<Arc<Self>, ConnectError> {
        config.check()?;
        let node = NodeId::random();
        let names = Names::new(&config.prefix);
        let refused = |why: String| ConnectError::Refused { address: config.address(), why };
        let reads = Arc::new(Reads::new(&config, names.clone()).map_err(refused)?);
        let subscribers: Arc<[Arc<dyn Subscriber>]> = subscribers.into();
        let maker = Maker { names: names.clone(), node, fence: Fence::new("") };
        let unreadable: Arc<AtomicU64> = Arc::default();
        let common = Common {
            names: names.clone(),
            subscribers: subscribers.clone(),
            unreadable: unreadable.clone(),
            pace: Pace::new(config.lanes, config.sweep),
        };
        let (stop, stopped) = watch::channel(false);
        let mut firsts = Vec::new();

        let (publisher, pipe) = Publisher::new(subscribers, maker.clone());
        let publisher = Arc::new(publisher);
        let (first, heard) = oneshot::channel();
        firsts.push(heard);
        tokio::spawn(link::keep(config.clone(), publisher.link.clone(), pipe, first, stopped.clone()));
        let mut lanes = Vec::with_capacity(config.lanes);
        for number in 0..config.lanes {
            let notes = if number == 0 { vec![names.control(), names.node(node)] } else { Vec::new() };
            let lane = Arc::new(Lane::new(number, common.clone(), notes));
            let (first, heard) = oneshot::channel();
            firsts.push(heard);
            let rails = Rails::new(lane.clone(), maker.clone());
            tokio::spawn(link::keep(config.clone(), lane.link.clone(), rails, first, stopped.clone()));
            lanes.push(lane);
        }
        for first in firsts {
            first.await.unwrap_or_else(|_| Err(refused("the attempt was given up".into())))?;
        }
        let links = lanes.iter().map(|lane| &lane.link).chain([&publisher.link]);
        for link in links {
            // Between connected and up lies no more than the subscription to this node's own channels.
            let up = link.wait_until_up();
            timeout(HEAD_MAX, up).await.map_err(|_| refused(format!("{} did not come up", link.name)))?;
        }
        let roster = Arc::new(Roster::new(node));
        let keeper = Keeper {
            config: config.clone(),
            publisher: publisher.clone(),
            roster: roster.clone(),
            reads: reads.clone(),
            maker,
        };
        let keeper = Arc::new(keeper);
        keeper.introduce().await.map_err(|error| refused(error.to_string()))?;
        tokio::spawn(Arc::clone(&keeper).keep(stopped));
        Ok(Arc::new(Self { node, names, publisher, lanes, roster, reads, keeper, unreadable, stop }))
    }

    /// This process in the cluster: where [`NodeTarget::One`] finds it, and what stands in its messages' ids.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    fn lane(&self, room: &Room) -> &Lane {
        &self.lanes[usize::from(Partition::of(room).0) % self.lanes.len()]
    }

    async fn page(&self, room: &Room, retention: Retention, query: HistoryQuery) -> Result<Page, BrokerError> {
        let fence = self.publisher.link.fence().ok_or(BrokerError::Unavailable)?;
        if let Some(page) = self.reads.history(room, &fence, query).await? {
            return Ok(page);
        }
        // No such room under this fence: it begins now, and nothing of what was before is known.
        let head = self.lane(room).head(room, retention);
        let head = timeout(HEAD_MAX, head).await.map_err(|_| BrokerError::Unavailable)?;
        let head = head.unwrap_or(Err(BrokerError::Unavailable))?.ok_or(BrokerError::HistoryOff)?;
        // The lane has just been answered, so its fence is the one that counts.
        let fence = self.lane(room).link.fence().unwrap_or(fence);
        if let Some(page) = self.reads.history(room, &fence, query).await? {
            return Ok(page);
        }
        let gap = query.since.map(|_| crate::Gap { missed: None });
        let from = Cursor::new(head.epoch, Offset(head.offset.0));
        Ok(Page { publications: Vec::new(), from, head, gap })
    }
}

impl Broker for RedisBroker {
    fn publish(&self, publish: Publish, reply: Reply) {
        self.publisher.publish(publish, reply);
    }

    fn subscribe(&self, who: SubscriberId, room: &Room, retention: Option<Retention>) -> Later<'_, Option<Cursor>> {
        let joined = self.lane(room).follow(who, room, retention);
        Box::pin(async { joined.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn unsubscribe(&self, who: SubscriberId, room: &Room) {
        self.lane(room).unfollow(who, room);
    }

    fn history(&self, room: &Room, retention: Retention, query: HistoryQuery) -> Later<'_, Page> {
        let room = room.clone();
        Box::pin(async move { self.page(&room, retention, query).await })
    }

    fn attend(&self, room: &Room, attendance: Attendance) -> Later<'_, ()> {
        let written = self.roster.attend(room, attendance, &self.publisher);
        Box::pin(async { written.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }

    fn presence(&self, room: &Room, detail: Detail) -> Later<'_, Presence> {
        let room = room.clone();
        Box::pin(async move { self.reads.presence(&room, detail, self.publisher.link.fence().as_ref()).await })
    }

    fn rooms(&self, query: RoomQuery) -> Later<'_, RoomList> {
        Box::pin(async move { self.reads.rooms(&query).await })
    }

    fn tell(&self, target: NodeTarget, note: Bytes) -> Later<'_, ()> {
        let channel = match target {
            NodeTarget::All => self.names.control(),
            NodeTarget::One(node) => self.names.node(node),
        };
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel).arg(&envelope::note(self.node, &note)[..]);
        let told = self.publisher.begin(publish);
        Box::pin(async { told.await.map(drop) })
    }

    /// `up`: this node can publish and hears what others publish.
    fn status(&self) -> Status {
        let lanes = || self.lanes.iter();
        Status {
            up: self.publisher.link.is_up() && lanes().all(|lane| lane.link.is_up()),
            reconnects: self.publisher.link.reconnects() + lanes().map(|lane| lane.link.reconnects()).sum::<u64>(),
            in_flight: self.publisher.in_flight(),
            rooms: lanes().map(|lane| lane.rooms() as u64).sum(),
            unreadable: self.unreadable.load(Ordering::Relaxed),
        }
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(async {
            self.keeper.close().await;
            self.stop.send_replace(true);
            self.lanes.iter().for_each(|lane| lane.close());
            self.reads.close();
            Ok(())
        })
    }
}
