//! `Heartbeat`: keeps presence in Redis correct. At a fixed interval (1 s by default) it reports that this node is
//! alive and writes changes that are not written yet. It writes everything again when Redis has lost it, and removes
//! the members of nodes that died.

use crate::{
    BrokerError, NodeId, Room,
    redis::{Fence, Loss, Master, Membership, NodeContext, Partition, PresenceChange, Roster, Routes},
};
use futures_util::future::join_all;
use redis::{FromRedisValue, Value};
use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

/// How many unwritten changes are sent at a time.
const BATCH: usize = 256;
/// How long closing waits until the last changes are written.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Keeps this node's presence correct in one Redis deployment.
pub(crate) struct Heartbeat {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) roster: Arc<Roster>,
}

/// What the heartbeats so far have shown. An owner is the id under which this node writes its members. After a loss the
/// node takes a new owner and writes all members again under it.
struct Progress {
    /// The fences of all masters.
    fences: Vec<Fence>,
    /// The last owner with an acknowledged heartbeat.
    known_owner: NodeId,
    /// Dead owners whose members this node has removed since the last acknowledged heartbeat.
    swept: Vec<NodeId>,
}

/// The reply to a heartbeat: whether Redis has lost this node's presence, and the dead owners whose members this node
/// is to remove.
type HeartbeatReply = (Option<Loss>, Vec<NodeId>);

impl Heartbeat {
    /// Sends the first heartbeat: from then on another node removes this node's members if it dies.
    pub(crate) async fn begin(&self) -> Result<(), BrokerError> {
        self.beat(self.roster.owner(), false, &[]).await.map(drop)
    }

    /// Sends heartbeats until `stop` is true.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut beats = interval(self.context.config.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = Progress { fences: self.fences(), known_owner: self.roster.owner(), swept: Vec::new() };
        let mut sweeps: JoinSet<Option<NodeId>> = JoinSet::new();
        loop {
            let is_tick = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                Some(done) = sweeps.join_next(), if !sweeps.is_empty() => {
                    // An owner whose sweep has failed is claimed again when the claim expires.
                    progress.swept.extend(done.ok().flatten());
                    continue;
                }
                () = self.context.events.reconnected.notified() => false,
                _ = beats.tick() => true,
            };
            // Deferred leaves wait for a number of regular heartbeats; one after a reconnect does not count.
            if is_tick {
                self.roster.end_round();
            }
            if !self.routes.home().publisher.status.is_up() {
                continue;
            }
            for dead in self.round(&mut progress).await.unwrap_or_default() {
                let heartbeat = Arc::clone(&self);
                sweeps.spawn(async move { heartbeat.sweep(dead).await.ok().map(|()| dead) });
            }
        }
    }

    /// Sends one heartbeat and writes what is unwritten. Returns the owners to sweep.
    async fn round(&self, progress: &mut Progress) -> Result<Vec<NodeId>, BrokerError> {
        // A changed fence means that a Redis process has other data than before. It may be an old snapshot that still
        // holds members who have left, so all members are written again under a new owner.
        let fences = self.fences();
        if progress.fences != fences {
            progress.fences = fences;
            self.roster.rewrite(Loss::Forgotten);
        }
        let owner = self.roster.owner();
        let (loss, mut claimed) = self.beat(owner, owner == progress.known_owner, &progress.swept).await?;
        progress.swept.clear();
        progress.known_owner = owner;
        // All members are written again under a new owner, which `rewrite` makes; its first heartbeat follows at once.
        if let Some(loss) = loss {
            tracing::warn!(?loss, "Redis has lost this node's presence; it is written again");
            self.roster.rewrite(loss);
            let owner = self.roster.owner();
            claimed.extend(self.beat(owner, false, &[]).await?.1);
            progress.known_owner = owner;
        }
        self.write().await;
        Ok(claimed)
    }

    fn fences(&self) -> Vec<Fence> {
        let masters = self.routes.masters();
        let mut fences: Vec<Fence> = masters.iter().filter_map(|master| master.publisher.status.fence()).collect();
        fences.sort();
        fences
    }

    async fn beat(&self, owner: NodeId, is_known: bool, swept: &[NodeId]) -> Result<HeartbeatReply, BrokerError> {
        let beat = self.context.builder.heartbeat(owner, is_known, self.context.config.dead_after, swept);
        let reply = read(self.routes.home().publisher.submit(beat).await?);
        let (loss, nodes, claimed) = reply.ok_or_else(|| BrokerError::Protocol("malformed heartbeat reply".into()))?;
        self.context.events.nodes.store(nodes, Ordering::Relaxed);
        Ok((loss, claimed))
    }

    /// Writes unwritten changes until none is left, one fails, or the next heartbeat is due. Returns whether a change
    /// was written.
    async fn write(&self) -> bool {
        let mut is_written = false;
        let writing = async {
            loop {
                let publisher = |room: &Room| Arc::clone(&self.routes.master(room).publisher);
                let results = join_all(self.roster.send_unwritten(BATCH, publisher)).await;
                let failed = results.iter().filter(|result| !matches!(result, Ok(Ok(())))).count();
                is_written |= failed < results.len();
                if failed > 0 || results.is_empty() {
                    return;
                }
            }
        };
        // Changes that are left are written after the next heartbeat.
        let _ = timeout(self.context.config.heartbeat, writing).await;
        is_written
    }

    /// Removes a dead owner's members, and so announces their leaves.
    async fn sweep(&self, dead: NodeId) -> Result<(), BrokerError> {
        let mut result = Ok(());
        for (master, partitions) in self.routes.masters_with_partitions() {
            // A master that is away must not keep the others from being swept.
            result = result.and(self.sweep_master(&master, &partitions, dead).await);
        }
        result
    }

    async fn sweep_master(&self, master: &Master, partitions: &[Partition], dead: NodeId) -> Result<(), BrokerError> {
        let rooms = master.reads.rooms_of(dead, partitions).await?;
        if !rooms.is_empty() {
            tracing::info!(owner = %dead, rooms = rooms.len(), "removing a dead node's members");
        }
        for room in &rooms {
            self.sweep_room(master, dead, room).await?;
        }
        // Rooms may be left in the owner's lists, because they are not removed there when another owner takes a session
        // over.
        let partitions: HashSet<Partition> = rooms.iter().map(Partition::of).collect();
        for partition in partitions {
            let mut forget = redis::cmd("DEL");
            forget.arg(self.context.builder.keys.rooms_of(dead, partition));
            master.publisher.submit(forget).await?;
        }
        Ok(())
    }

    async fn sweep_room(&self, master: &Master, dead: NodeId, room: &Room) -> Result<(), BrokerError> {
        let mut step = Some(0);
        while let Some(at) = step {
            let (sessions, next) = master.reads.sessions_of(dead, room, at).await?;
            let leaves = sessions.into_iter().map(|session| {
                let membership = Membership { room: room.clone(), session };
                // The stored entry says whether its leave is really announced: not in rooms without presence.
                let change = PresenceChange { membership, owner: dead, enter: None, announce: true };
                master.publisher.submit(self.context.builder.presence(&change))
            });
            for result in join_all(leaves).await {
                result?;
            }
            step = next;
        }
        Ok(())
    }

    /// Writes the leaves of all sessions of this node, and takes the node off the list of nodes. Members whose leave
    /// cannot be written are removed by another node.
    pub(crate) async fn close(&self) {
        self.roster.leave_all();
        let closing = async {
            while !self.roster.is_empty() {
                if !self.write().await {
                    return false;
                }
            }
            let mut forget = redis::cmd("ZREM");
            forget.arg(self.context.builder.keys.nodes()).arg(self.roster.owner().to_string());
            self.routes.home().publisher.submit(forget).await.is_ok()
        };
        if !timeout(CLOSE_MAX, closing).await.unwrap_or(false) {
            tracing::warn!(
                "not every member's leave was written; other nodes do it when this one's heartbeat is missed"
            );
        }
    }
}

/// Reads the reply to a heartbeat, with the number of living nodes; `None`: malformed reply.
fn read(reply: Value) -> Option<(Option<Loss>, u32, Vec<NodeId>)> {
    let mut words = Vec::<String>::from_redis_value(reply).ok()?.into_iter();
    let loss = match words.next()?.as_str() {
        "alive" => None,
        "swept" => Some(Loss::Swept),
        _ => Some(Loss::Forgotten),
    };
    let nodes = words.next()?.parse().ok()?;
    Some((loss, nodes, words.filter_map(|word| u64::from_str_radix(&word, 16).ok().map(NodeId)).collect()))
}
