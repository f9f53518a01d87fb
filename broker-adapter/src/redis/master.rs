//! `Master`: one master and everything that this node keeps with it: the connection for what it writes, those for what
//! it receives, and the pool for what it reads. `topology/` finds the master; `routes.rs` decides which rooms it has.

use crate::{
    BrokerError, Gap, HistoryQuery, Page, Retention, Room, Status,
    redis::{
        CONNECT_MAX, ConnectError, ConnectionStatus, Fence, NodeContext, Partition, PubSubConnection, Publisher,
        RETRY_MAX, ReadPool, SubscriberDriver, Target, connection::keep::keep,
    },
};
use std::{
    mem::replace,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// How long a read may wait for the head of a room that Redis does not know.
const HEAD_MAX: Duration = Duration::from_secs(2);
/// How long a first connection may take. Between connected and up is no more than the subscription to this node's own
/// channels.
const READY_MAX: Duration = CONNECT_MAX.saturating_add(HEAD_MAX);
/// How long a read may wait until a failover's last connection leads to the new master: one retry and its handshake.
const SWITCH_MAX: Duration = RETRY_MAX.saturating_add(CONNECT_MAX);
/// How long a page of history may take, with all that it waits for: callers have deadlines of their own.
const PAGE_MAX: Duration = Duration::from_secs(6);

/// The connections to one master. They follow it when it moves to another server.
pub(crate) struct Master {
    /// Where it was at first; its name in the log.
    pub(crate) name: String,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) reads: Arc<ReadPool>,
    pub(crate) connections: Vec<Arc<PubSubConnection>>,
    /// The partitions that it has. This node receives control messages in them, over the first connection.
    pub(crate) partitions: watch::Sender<Vec<Partition>>,
    stop: watch::Sender<bool>,
}

impl Master {
    /// Begins to connect. `of` distinguishes its connections in the log from those of other masters.
    pub(crate) fn start(
        context: &Arc<NodeContext>,
        target: &Target,
        of: &str,
        partitions: Vec<Partition>,
    ) -> Arc<Self> {
        let (stop, stopped) = watch::channel(false);
        let (partitions, controls) = watch::channel(partitions);
        let status = |name: String| Arc::new(ConnectionStatus::new(name + of, context.events.clone()));
        let (publisher, driver) = Publisher::new(status("commands".into()), controls.clone(), context.clone());
        let keeping = keep(publisher.status.clone(), target.clone(), context.clone(), driver, stopped.clone());
        context.tasks.essential("Redis connection for commands", keeping);
        let connections = (0..context.config.subscriber_connections).map(|number| {
            let status = status(format!("subscriber {number}"));
            let connection = Arc::new(PubSubConnection::new(status, context.clone()));
            let driver = SubscriberDriver::new(connection.clone(), (number == 0).then(|| controls.clone()));
            let keeping = keep(connection.status.clone(), target.clone(), context.clone(), driver, stopped.clone());
            context.tasks.essential("Redis connection for deliveries", keeping);
            connection
        });
        let connections = connections.collect();
        let publisher = Arc::new(publisher);
        let reads = Arc::new(ReadPool::new(publisher.status.clone(), context.clone()));
        Arc::new(Self { name: target.name(), publisher, reads, connections, partitions, stop })
    }

    /// Waits until all connections are up, for the first attempt of each.
    pub(crate) async fn ready(&self) -> Result<(), ConnectError> {
        for status in self.statuses() {
            let refused = |_| {
                let why = format!("{} did not come up", status.name);
                ConnectError::Refused { address: self.name.clone(), why }
            };
            timeout(READY_MAX, status.first()).await.map_err(refused)??;
        }
        Ok(())
    }

    fn statuses(&self) -> impl Iterator<Item = &ConnectionStatus> {
        self.connections.iter().map(|connection| &*connection.status).chain([&*self.publisher.status])
    }

    /// Whether this node can publish here, and receives what others publish; an error: why not.
    pub(crate) fn availability(&self) -> Result<(), BrokerError> {
        self.statuses().find(|status| !status.is_up()).map_or(Ok(()), |status| Err(status.away()))
    }

    /// Adds these connections to the node's status.
    pub(crate) fn add_to(&self, status: &mut Status) {
        let mut refused = self.connections.iter().map(|c| &c.is_refused).chain([&*self.publisher.is_refused]);
        status.up &= self.availability().is_ok() && !refused.any(|is_refused| is_refused.load(Ordering::Relaxed));
        status.reconnects += self.statuses().map(ConnectionStatus::reconnects).sum::<u64>();
        status.in_flight += self.publisher.in_flight.publishes.load(Ordering::Relaxed);
        status.rooms += self.connections.iter().map(|c| c.interest.lock().rooms() as u64).sum::<u64>();
    }

    /// The connection over which the rooms of a partition come.
    pub(crate) fn connection(&self, partition: Partition) -> &PubSubConnection {
        &self.connections[usize::from(partition.0) % self.connections.len()]
    }

    /// Sets the partitions of the master, in which this node receives control messages from now on.
    pub(crate) fn set_partitions(&self, partitions: &[Partition]) {
        self.partitions.send_if_modified(|known| {
            let was = replace(known, partitions.to_vec());
            partitions.iter().any(|partition| !was.contains(partition))
        });
    }

    /// Reads a page of a room's history from the memory that the room's deliveries come from.
    pub(crate) async fn page(
        &self,
        room: &Room,
        retention: Retention,
        query: HistoryQuery,
    ) -> Result<Page, BrokerError> {
        timeout(PAGE_MAX, self.page_in_turns(room, retention, query)).await.unwrap_or(Err(BrokerError::Unavailable))
    }

    async fn page_in_turns(&self, room: &Room, retention: Retention, query: HistoryQuery) -> Result<Page, BrokerError> {
        let (connection, publisher) = (&self.connection(Partition::of(room)).status, &self.publisher.status);
        // The second turn is for a failover that came during the first.
        for _ in 0..2 {
            let fence = common_fence(connection, publisher).await.ok_or(BrokerError::Unavailable)?;
            let page = self.page_under(&fence, room, retention, query).await?;
            if [connection, publisher].iter().all(|status| status.fence().as_ref() == Some(&fence)) {
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
        // Redis does not know the room under this fence. Reading its head begins a new epoch, in which nothing of what
        // was before is known.
        let head = self.connection(Partition::of(room)).head(room, retention);
        let head = timeout(HEAD_MAX, head).await.map_err(|_| BrokerError::Unavailable)?;
        let head = head.unwrap_or(Err(BrokerError::Unavailable))?.ok_or(BrokerError::HistoryOff)?;
        if let Some(page) = self.reads.history(room, fence, query).await? {
            return Ok(page);
        }
        let gap = query.since.map(|_| Gap { missed: None });
        Ok(Page { publications: Vec::new(), from: head, head, gap })
    }

    /// Closes the connections. What still waits for a reply fails.
    pub(crate) fn close(&self) {
        self.stop.send_replace(true);
        self.connections.iter().for_each(|connection| connection.close());
        self.reads.close();
    }
}

/// The fence of the memory that both connections lead to. During a failover one of them follows the new master before
/// the other. A page of the old master would then hide what the new one has delivered, so a reader waits until both
/// have followed.
async fn common_fence(one: &ConnectionStatus, other: &ConnectionStatus) -> Option<Fence> {
    let (mut of_one, mut of_other) = (one.last.subscribe(), other.last.subscribe());
    let agreement = async {
        loop {
            if let (Some(fence), Some(same)) = (one.fence(), other.fence())
                && fence == same
            {
                return fence;
            }
            // Both senders live as long as the statuses.
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
    use crate::redis::connection::status::Server;
    use futures_util::FutureExt;
    use redis::IntoConnectionInfo;
    use std::pin::pin;

    /// As if a connection had been made to a server with this run id.
    fn lead_to(status: &ConnectionStatus, run_id: &str) {
        let address = "redis://127.0.0.1/".into_connection_info().unwrap();
        status.set_connected(Server { address, fence: Fence::new(run_id) });
    }

    #[tokio::test]
    async fn a_read_waits_until_both_connections_follow_the_new_master() {
        let statuses = ["subscriber", "commands"].map(|name| ConnectionStatus::new(name.to_owned(), Arc::default()));
        let [subscriber, commands] = &statuses;
        statuses.iter().for_each(|status| lead_to(status, "old"));
        assert_eq!(common_fence(subscriber, commands).await, Some(Fence::new("old")));
        for (first, second) in [(subscriber, commands), (commands, subscriber)] {
            lead_to(first, "new");
            let mut waiting = pin!(common_fence(subscriber, commands));
            assert_eq!(waiting.as_mut().now_or_never(), None, "the two lead to different memories");
            lead_to(second, "new");
            assert_eq!(waiting.await, Some(Fence::new("new")));
            statuses.iter().for_each(|status| lead_to(status, "old"));
        }
    }
}
