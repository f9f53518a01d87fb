//! `Sweeper`: removes the members of owners that died and those whose leases have ended, on the one node of the cluster
//! that sweeps. `heartbeat.rs` says when. What is done is gone from the owner's list in Redis, so a sweep that fails goes
//! on where it stopped, here or on another node.

use crate::{
    BrokerError, NodeId,
    redis::{LEASES, Master, MemberPage, NodeContext, Over, Partition, Routes},
};
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::time::sleep;

/// Members removed in one call: some 20 µs each, so that Redis is back with the others within a millisecond.
const CALL_MAX: usize = 32;
/// Calls under way at one master: enough that a Redis some milliseconds away is hardly waited for.
const CALLS: usize = 8;
/// Members of one partition that are read at a time: Redis takes 0.3 ms for them.
const PAGE_MAX: usize = 2_048;
/// Members of all partitions that are read at a time: a few megabytes.
const LISTED_MAX: usize = 65_536;

/// Removes members whose time is over.
pub(crate) struct Sweeper {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) routes: Arc<Routes>,
}

/// What one sweep removes, and how many it has removed.
struct Sweep {
    owner: NodeId,
    over: Over,
    removed: AtomicUsize,
}

impl Sweeper {
    /// Removes a dead owner's members, and so announces their leaves. Tries again until all masters have been swept.
    pub(crate) async fn sweep(&self, dead: NodeId) {
        let sweep = Sweep { owner: dead, over: Over::All, removed: AtomicUsize::new(0) };
        while let Err(why) = self.remove(&sweep).await {
            tracing::debug!(owner = %dead, %why, "the sweep goes on later");
            sleep(self.context.config.heartbeat).await;
        }
        let members = sweep.removed.into_inner();
        if members > 0 {
            tracing::info!(owner = %dead, members, "removed a dead node's members");
        }
    }

    /// Ends the leases whose time is over. What fails is done by the next call.
    pub(crate) async fn end_leases(&self) {
        let sweep = Sweep { owner: LEASES, over: Over::Ended, removed: AtomicUsize::new(0) };
        if let Err(why) = self.remove(&sweep).await {
            tracing::debug!(%why, "leases are ended later");
        }
    }

    async fn remove(&self, sweep: &Sweep) -> Result<(), BrokerError> {
        let masters = self.routes.masters_with_partitions();
        // A master that is away must not keep the others from being swept.
        let removing = masters.into_iter().map(|(master, partitions)| self.remove_at(master, partitions, sweep));
        join_all(removing).await.into_iter().collect()
    }

    async fn remove_at(
        &self,
        master: Arc<Master>,
        mut partitions: Vec<Partition>,
        sweep: &Sweep,
    ) -> Result<(), BrokerError> {
        let mut outcome = Ok(());
        while !partitions.is_empty() {
            let most = (LISTED_MAX / partitions.len()).min(PAGE_MAX);
            let pages = master.reads.members_of(sweep.owner, sweep.over, &partitions, most).await?;
            let mut listed = Vec::new();
            for (partition, page) in partitions.into_iter().zip(pages) {
                match page {
                    Ok(page) => listed.push((partition, page)),
                    Err(why) => outcome = Err(why),
                }
            }
            let mut refused = self.remove_listed(&master, &listed, sweep).await?;
            // Where a page was full there may be more, unless it is full of members that Redis refuses to remove.
            listed.retain(|(partition, page)| page.is_full && !refused.contains_key(partition));
            partitions = listed.into_iter().map(|(partition, _)| partition).collect();
            outcome = refused.drain().next().map_or(outcome, |(_, why)| Err(why));
        }
        outcome
    }

    /// Removes what was read, in calls that are short for Redis. Returns where Redis has refused a call: that does not keep
    /// the others from being sent, unless the master is away.
    async fn remove_listed(
        &self,
        master: &Master,
        listed: &[(Partition, MemberPage)],
        sweep: &Sweep,
    ) -> Result<HashMap<Partition, BrokerError>, BrokerError> {
        let mut refused = HashMap::new();
        if listed.iter().all(|(_, page)| page.members.is_empty() && page.unreadable.is_empty()) {
            return Ok(refused);
        }
        let connection = master.reads.for_upkeep().await?;
        let mut replies = FuturesUnordered::new();
        let mut take = |(partition, is_sweep, reply): (Partition, bool, Result<usize, BrokerError>)| match reply {
            Ok(removed) => {
                sweep.removed.fetch_add(if is_sweep { removed } else { 0 }, Ordering::Relaxed);
                Ok(())
            }
            Err(BrokerError::Unavailable) => Err(BrokerError::Unavailable),
            Err(why) => {
                refused.insert(partition, why);
                Ok(())
            }
        };
        let builder = &self.context.builder;
        for (partition, page) in listed {
            let sweeps = page.members.chunks(CALL_MAX);
            let sweeps = sweeps.map(|members| (true, builder.sweep(sweep.owner, sweep.over, *partition, members)));
            let unreadable = Some(&page.unreadable).filter(|unreadable| !unreadable.is_empty());
            let unlist = unreadable.map(|unreadable| (false, builder.unlist(sweep.owner, *partition, unreadable)));
            for (is_sweep, call) in sweeps.chain(unlist) {
                let connection = connection.clone();
                replies.push(async move { (*partition, is_sweep, master.reads.run(connection, &call).await) });
                if replies.len() == CALLS
                    && let Some(reply) = replies.next().await
                {
                    take(reply)?;
                }
            }
        }
        while let Some(reply) = replies.next().await {
            take(reply)?;
        }
        Ok(refused)
    }
}
