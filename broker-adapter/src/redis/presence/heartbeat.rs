//! `Heartbeat`: keeps presence in Redis correct. At a fixed interval (1 s by default) it reports that this node is
//! alive and writes changes that are not written yet. It writes everything again when Redis has lost it. One node of the
//! cluster also sweeps: the first to claim it, for as long as its heartbeats come.

use crate::{
    BrokerError, NodeId, Room,
    redis::{Fence, HeartbeatTimes, Loss, NodeContext, Roster, Routes, Sweeper},
};
use futures_util::future::join_all;
use redis::{FromRedisValue, Value};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// How many unwritten changes are sent at a time.
const BATCH: usize = 256;
/// The claim to sweep ends this many intervals after the last heartbeat: before the node counts as dead, so that
/// another one is there to sweep it.
const CLAIM_HEARTBEATS: u32 = 3;
/// How long closing waits until the last changes are written.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Keeps this node's presence correct in one Redis deployment.
pub(crate) struct Heartbeat {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) sweeper: Arc<Sweeper>,
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
    /// Until when this node may sweep; `None`: another one does.
    claim: Option<Instant>,
}

/// The reply to a heartbeat.
struct HeartbeatReply {
    /// Redis has lost this node's presence.
    loss: Option<Loss>,
    /// How many nodes live.
    nodes: u32,
    /// What this node is to sweep, if it is the one that does.
    due: Option<DeadOwners>,
}

/// Who is to be swept.
struct DeadOwners {
    owners: Vec<NodeId>,
    /// When the next owner may be dead, from now.
    next: Duration,
}

/// The sweeps under way. Dropped with all of them when the node stops.
#[derive(Default)]
struct Sweeps {
    tasks: JoinSet<Option<NodeId>>,
    /// Ends leases.
    leases: Option<AbortHandle>,
    owners: HashMap<NodeId, AbortHandle>,
}

impl Progress {
    fn new(heartbeat: &Heartbeat) -> Self {
        Self { fences: heartbeat.fences(), known_owner: heartbeat.roster.owner(), swept: Vec::new(), claim: None }
    }
}

impl Sweeps {
    /// Ends leases, and sweeps the owners that are not being swept yet.
    fn start(&mut self, owners: Vec<NodeId>, sweeper: &Arc<Sweeper>) {
        if self.leases.as_ref().is_none_or(AbortHandle::is_finished) {
            let sweeper = Arc::clone(sweeper);
            self.leases = Some(self.tasks.spawn(async move {
                sweeper.end_leases().await;
                None
            }));
        }
        self.owners.retain(|_, task| !task.is_finished());
        for owner in owners {
            let sweeper = Arc::clone(sweeper);
            let sweep = async move {
                sweeper.sweep(owner).await;
                Some(owner)
            };
            self.owners.entry(owner).or_insert_with(|| self.tasks.spawn(sweep));
        }
    }

    /// Ends all sweeps: another node goes on with them.
    fn stop(&mut self) {
        self.tasks.abort_all();
        self.owners.clear();
    }
}

impl Heartbeat {
    /// Sends the first heartbeat: from then on another node removes this node's members if it dies.
    pub(crate) async fn begin(&self) -> Result<(), BrokerError> {
        self.beat(self.roster.owner(), false, &mut Progress::new(self)).await.map(drop)
    }

    /// Sends heartbeats until `stop` is true.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut beats = interval(self.context.config.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = Progress::new(&self);
        let mut sweeps = Sweeps::default();
        loop {
            let is_tick = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                Some(done) = sweeps.tasks.join_next(), if !sweeps.tasks.is_empty() => {
                    progress.swept.extend(done.ok().flatten()); // not of one that was stopped
                    continue;
                }
                () = self.context.events.reconnected.notified() => false,
                _ = beats.tick() => true,
            };
            // Deferred leaves wait for a number of regular heartbeats; one after a reconnect does not count.
            if is_tick {
                self.roster.end_round();
            }
            if self.routes.home().publisher.status.is_up() {
                // After a heartbeat without a reply the claim still holds until its time is over.
                if let Some(due) = self.round(&mut progress).await.ok().flatten() {
                    sweeps.start(due.owners, &self.sweeper);
                    // The next heartbeat comes when an owner may be dead, if that is before its time.
                    if due.next < self.context.config.heartbeat {
                        beats.reset_after(due.next + Duration::from_millis(1));
                    }
                }
            }
            if progress.claim.is_none_or(|until| until < Instant::now()) {
                sweeps.stop();
            }
        }
    }

    /// Sends one heartbeat and writes what is unwritten. Returns what to sweep.
    async fn round(&self, progress: &mut Progress) -> Result<Option<DeadOwners>, BrokerError> {
        // A changed fence means that a Redis process has other data than before. It may be an old snapshot that still
        // holds members who have left, so all members are written again under a new owner.
        let fences = self.fences();
        if progress.fences != fences {
            progress.fences = fences;
            self.roster.rewrite(Loss::Forgotten);
        }
        let owner = self.roster.owner();
        let mut reply = self.beat(owner, owner == progress.known_owner, progress).await?;
        progress.swept.clear();
        progress.known_owner = owner;
        // All members are written again under a new owner, which `rewrite` makes; its first heartbeat follows at once.
        if let Some(loss) = reply.loss {
            tracing::warn!(?loss, "Redis has lost this node's presence; it is written again");
            self.roster.rewrite(loss);
            let owner = self.roster.owner();
            reply = self.beat(owner, false, progress).await?;
            progress.known_owner = owner;
        }
        self.write().await;
        Ok(reply.due)
    }

    fn fences(&self) -> Vec<Fence> {
        let masters = self.routes.masters();
        let mut fences: Vec<Fence> = masters.iter().filter_map(|master| master.publisher.status.fence()).collect();
        fences.sort();
        fences
    }

    async fn beat(
        &self,
        owner: NodeId,
        is_known: bool,
        progress: &mut Progress,
    ) -> Result<HeartbeatReply, BrokerError> {
        let config = &self.context.config;
        let times = HeartbeatTimes { dead_after: config.dead_after, claim: config.heartbeat * CLAIM_HEARTBEATS };
        let beat = self.context.builder.heartbeat(owner, is_known, &times, &progress.swept);
        let sent = Instant::now();
        let reply = read(self.routes.home().publisher.submit(beat).await?);
        let reply = reply.ok_or_else(|| BrokerError::Protocol("malformed heartbeat reply".into()))?;
        self.context.events.nodes.store(reply.nodes, Ordering::Relaxed);
        progress.claim = reply.due.is_some().then_some(sent + times.claim);
        Ok(reply)
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

/// Reads the reply to a heartbeat; `None`: malformed reply.
fn read(reply: Value) -> Option<HeartbeatReply> {
    let mut words = Vec::<String>::from_redis_value(reply).ok()?.into_iter();
    let loss = match words.next()?.as_str() {
        "alive" => None,
        "swept" => Some(Loss::Swept),
        _ => Some(Loss::Forgotten),
    };
    let nodes = words.next()?.parse().ok()?;
    let next = words.next().map(|word| word.parse().map(Duration::from_millis)).transpose().ok()?;
    let owners = words.filter_map(|word| u64::from_str_radix(&word, 16).ok().map(NodeId)).collect();
    Some(HeartbeatReply { loss, nodes, due: next.map(|next| DeadOwners { owners, next }) })
}
