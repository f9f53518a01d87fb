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
    supervisor::{CONNECT_MAX, RETRY_MAX},
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
/// How long a read may wait until a failover's last connection leads to the new master: one retry and its handshake.
const SWITCH_MAX: Duration = RETRY_MAX.saturating_add(CONNECT_MAX);

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

    /// A page of a room's history, of the memory that the room's deliveries come from.
    pub(super) async fn page(
        &self,
        room: &Room,
        retention: Retention,
        query: HistoryQuery,
    ) -> Result<Page, BrokerError> {
        let lane = &self.lane(Partition::of(room)).link;
        // The second turn is for a failover that came during the first.
        for _ in 0..2 {
            let fence = common_fence(lane, &self.publisher.link).await.ok_or(BrokerError::Unavailable)?;
            let page = self.page_under(&fence, room, retention, query).await?;
            if [lane, &self.publisher.link].iter().all(|link| link.fence().as_ref() == Some(&fence)) {
                return Ok(page);
            }
        }
        Err(BrokerError::Unavailable)
    }

    async fn page_under(
        &self,
        fence: &Fence,
        room: &Room,
        retention: Retention,
        query: HistoryQuery,
    ) -> Result<Page, BrokerError> {
        if let Some(page) = self.reads.history(room, fence, query).await? {
            return Ok(page);
        }
        // No such room under this fence: it begins now, and nothing of what was before is known.
        let lane = self.lane(Partition::of(room));
        let head = timeout(HEAD_MAX, lane.head(room, retention)).await.map_err(|_| BrokerError::Unavailable)?;
        let head: Cursor = head.unwrap_or(Err(BrokerError::Unavailable))?.ok_or(BrokerError::HistoryOff)?;
        if let Some(page) = self.reads.history(room, fence, query).await? {
            return Ok(page);
        }
        let gap = query.since.map(|_| Gap { missed: None });
        let from = Cursor::new(head.epoch, Offset(head.offset.0));
        Ok(Page { publications: Vec::new(), from, head, gap })
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

/// The fence of the memory that both connections lead to. During a failover one of them follows the new master before
/// the other. A page of the old master would then hide what the new one has delivered, so a reader waits until both
/// have followed.
async fn common_fence(one: &Link, other: &Link) -> Option<Fence> {
    let (mut of_one, mut of_other) = (one.connections(), other.connections());
    let agreement = async {
        loop {
            if let (Some(fence), Some(same)) = (one.fence(), other.fence())
                && fence == same
            {
                return fence;
            }
            // Both senders live as long as the links.
            let _ = tokio::select! {
                changed = of_one.changed() => changed,
                changed = of_other.changed() => changed,
            };
        }
    };
    timeout(SWITCH_MAX, agreement).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    fn links() -> [Link; 2] {
        ["lane", "commands"].map(|name| {
            let link = Link::new(name.to_owned(), Arc::default());
            link.leads_to("old");
            link
        })
    }

    #[tokio::test]
    async fn a_read_waits_until_both_connections_follow_the_new_master() {
        let [lane, commands] = links();
        assert_eq!(common_fence(&lane, &commands).await, Some(Fence::new("old")));
        for (first, second) in [(&lane, &commands), (&commands, &lane)] {
            first.leads_to("new");
            let mut waiting = pin!(common_fence(&lane, &commands));
            assert_eq!(waiting.as_mut().now_or_never(), None, "the two lead to different memories");
            second.leads_to("new");
            assert_eq!(waiting.await, Some(Fence::new("new")));
            for link in [&lane, &commands] {
                link.leads_to("old");
            }
        }
    }
}
