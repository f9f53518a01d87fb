//! One master and everything that this node keeps with it: the connection for what it writes, those for what it hears,
//! the pool for what it reads. Who the master is, `target.rs` says; which rooms it has, `routes.rs`. Decides neither.

use super::{
    config::Config,
    interest::Pace,
    lane::{Common, Lane, Rails},
    link::{self, Bell, ConnectError, Link},
    names::{Names, Partition},
    publisher::Publisher,
    reads::Reads,
    script::{Fence, Maker, Scripts},
    target::Target,
};
use crate::{BrokerError, Cursor, Gap, HistoryQuery, NodeId, Offset, Page, Retention, Room, Subscriber};
use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// How long a read may wait for the head of a room that Redis has forgotten.
const HEAD_MAX: Duration = Duration::from_secs(2);

/// What all stores of a node have in common.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) config: Config,
    pub(super) node: NodeId,
    pub(super) names: Names,
    pub(super) scripts: &'static Scripts,
    pub(super) subscribers: Arc<[Arc<dyn Subscriber>]>,
    pub(super) unreadable: Arc<AtomicU64>,
    /// Numbers the node's messages.
    pub(super) numbers: Arc<AtomicU64>,
    /// Rings for those who watch over the stores of one address.
    pub(super) bell: Arc<Bell>,
}

impl Base {
    pub(super) fn maker(&self) -> Maker {
        Maker { names: self.names.clone(), node: self.node, fence: Fence::new(""), scripts: self.scripts }
    }
}

/// The partitions that a store has now; its lanes hear controls in them.
pub(super) type Partitions = Arc<Mutex<Vec<Partition>>>;

/// How first attempts to connect went.
pub(super) type Firsts = Vec<oneshot::Receiver<Result<(), ConnectError>>>;

/// See the module's head.
pub(super) struct Store {
    /// Where it was when it began.
    pub(super) name: String,
    pub(super) publisher: Arc<Publisher>,
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) reads: Arc<Reads>,
    partitions: Partitions,
    stop: watch::Sender<bool>,
}

impl Store {
    /// Begins to connect. `of` tells its connections from those of others in the log.
    pub(super) fn start(base: &Base, target: &Target, of: &str, partitions: Vec<Partition>) -> (Self, Firsts) {
        let (stop, stopped) = watch::channel(false);
        let partitions: Partitions = Arc::new(Mutex::new(partitions));
        let common = Common {
            names: base.names.clone(),
            node: base.node,
            subscribers: base.subscribers.clone(),
            unreadable: base.unreadable.clone(),
            partitions: partitions.clone(),
            pace: Pace::new(base.config.lanes, base.config.sweep),
        };
        let mut firsts = Vec::new();
        let mut heard = || {
            let (first, heard) = oneshot::channel();
            firsts.push(heard);
            first
        };
        let route = |link: &Arc<Link>| (link.clone(), target.clone(), base.scripts);
        let link = |name: String| Arc::new(Link::new(name + of, base.bell.clone()));
        let numbers = (link("commands".into()), base.numbers.clone());
        let (publisher, pipe) = Publisher::new(numbers, base.subscribers.clone(), base.maker());
        tokio::spawn(link::keep(route(&publisher.link), pipe, heard(), stopped.clone()));
        let mut lanes = Vec::with_capacity(base.config.lanes);
        for number in 0..base.config.lanes {
            let lane = Arc::new(Lane::new(link(format!("lane {number}")), common.clone(), number == 0));
            let rails = Rails::new(lane.clone(), base.maker());
            tokio::spawn(link::keep(route(&lane.link), rails, heard(), stopped.clone()));
            lanes.push(lane);
        }
        let publisher = Arc::new(publisher);
        let reads = Arc::new(Reads::new(publisher.link.clone(), base.names.clone()));
        (Self { name: target.name(), publisher, lanes, reads, partitions, stop }, firsts)
    }

    /// Waits for the first attempts, and for the connections to be up.
    pub(super) async fn ready(&self, firsts: Firsts) -> Result<(), ConnectError> {
        let refused = |why: String| ConnectError::Refused { address: self.name.clone(), why };
        for first in firsts {
            first.await.unwrap_or_else(|_| Err(refused("the attempt was given up".into())))?;
        }
        for link in self.links() {
            // Between connected and up lies no more than the subscription to this node's own channels.
            let up = link.wait_until_up();
            timeout(HEAD_MAX, up).await.map_err(|_| refused(format!("{} did not come up", link.name)))?;
        }
        Ok(())
    }

    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.lanes.iter().map(|lane| &lane.link).chain([&self.publisher.link])
    }

    /// This node can publish here and hears what others publish.
    pub(super) fn is_up(&self) -> bool {
        self.links().all(|link| link.is_up())
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.links().map(|link| link.reconnects()).sum()
    }

    pub(super) fn rooms(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.rooms() as u64).sum()
    }

    pub(super) fn lane(&self, partition: Partition) -> &Lane {
        &self.lanes[usize::from(partition.0) % self.lanes.len()]
    }

    /// Some partition of its own; `None` if it has none.
    pub(super) fn first_partition(&self) -> Option<Partition> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).first().copied()
    }

    /// It has these partitions from now on. Notes are heard in them too.
    pub(super) fn has(&self, partitions: &[Partition]) {
        let was = std::mem::replace(
            &mut *self.partitions.lock().unwrap_or_else(PoisonError::into_inner),
            partitions.to_vec(),
        );
        if partitions.iter().any(|partition| !was.contains(partition)) {
            self.lanes[0].hear_more();
        }
    }

    pub(super) async fn page(
        &self,
        room: &Room,
        retention: Retention,
        query: HistoryQuery,
    ) -> Result<Page, BrokerError> {
        let fence = self.agreed(room).ok_or(BrokerError::Unavailable)?;
        if let Some(page) = self.reads.history(room, &fence, query).await? {
            return self.vouch(room, &fence, page);
        }
        // No such room under this fence: it begins now, and nothing of what was before is known.
        let lane = self.lane(Partition::of(room));
        let head = timeout(HEAD_MAX, lane.head(room, retention)).await.map_err(|_| BrokerError::Unavailable)?;
        let head: Cursor = head.unwrap_or(Err(BrokerError::Unavailable))?.ok_or(BrokerError::HistoryOff)?;
        if let Some(page) = self.reads.history(room, &fence, query).await? {
            return self.vouch(room, &fence, page);
        }
        let gap = query.since.map(|_| Gap { missed: None });
        let from = Cursor::new(head.epoch, Offset(head.offset.0));
        self.vouch(room, &fence, Page { publications: Vec::new(), from, head, gap })
    }

    /// Of which memory the room's deliveries are, if what is read here is of the same. During a failover they can differ
    /// for a moment: a page of the old master would hide what the new one has told.
    fn agreed(&self, room: &Room) -> Option<Fence> {
        let heard = self.lane(Partition::of(room)).link.fence();
        self.publisher.link.fence().filter(|fence| heard.as_ref() == Some(fence))
    }

    /// The page, if nothing has moved meanwhile.
    fn vouch(&self, room: &Room, fence: &Fence, page: Page) -> Result<Page, BrokerError> {
        if self.agreed(room).as_ref() == Some(fence) { Ok(page) } else { Err(BrokerError::Unavailable) }
    }

    /// Closes the connections; nobody is answered any more.
    pub(super) fn close(&self) {
        self.stop.send_replace(true);
        self.lanes.iter().for_each(|lane| lane.close());
        self.reads.close();
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.publisher.in_flight()
    }
}
