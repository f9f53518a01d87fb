//! Keeps presence true: says every second that this node lives, writes what could not be written, writes everything
//! again when Redis has forgotten it, and removes the members of nodes that died.

use crate::redis::{
    commands::{Change, Fence, Maker, Owner, What},
    config::Config,
    connection::keep::Bell,
    keys::Partition,
    master::Store,
    presence::roster::{Loss, Roster},
    routes::Routes,
};
use crate::{BrokerError, NodeId, Room};
use futures_util::future::join_all;
use redis::{FromRedisValue, Value};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

/// Changes that are written again at a time.
const BATCH: usize = 256;
/// How long closing waits for the last changes to be written.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// See the module's head.
pub(crate) struct Keeper {
    pub(crate) config: Config,
    pub(crate) bell: Arc<Bell>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) maker: Maker,
}

/// What the last heartbeats left behind.
struct Known {
    /// Of every master.
    fences: Vec<Fence>,
    /// The last name under which this node said that it lives.
    introduced: NodeId,
    /// Whom this node has swept since.
    swept: Vec<NodeId>,
}

impl Known {
    fn name(&self, owner: NodeId) -> Owner {
        if owner == self.introduced { Owner::Known(owner) } else { Owner::New(owner) }
    }
}

/// What a heartbeat was answered with.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    loss: Option<Loss>,
    claimed: Vec<NodeId>,
}

impl Keeper {
    /// Says for the first time that this node lives: from then on others answer for its members if it dies.
    pub(crate) async fn introduce(&self) -> Result<(), BrokerError> {
        self.say(Owner::New(self.roster.owner()), &[]).await.map(drop)
    }

    /// Keeps until `stop` is true.
    pub(crate) async fn keep(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut beats = interval(self.config.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Known { fences: self.fences(), introduced: self.roster.owner(), swept: Vec::new() };
        let mut sweeps: JoinSet<Option<NodeId>> = JoinSet::new();
        loop {
            let beat = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                Some(done) = sweeps.join_next(), if !sweeps.is_empty() => {
                    // One that failed is claimed again when its claim runs out.
                    known.swept.extend(done.ok().flatten());
                    continue;
                }
                () = self.bell.risen() => false,
                _ = beats.tick() => true,
            };
            if beat {
                self.roster.end_round();
            }
            if !self.routes.home().publisher.link.is_up() {
                continue;
            }
            for dead in self.round(&mut known).await.unwrap_or_default() {
                let keeper = Arc::clone(&self);
                sweeps.spawn(async move { keeper.sweep(dead).await.ok().map(|()| dead) });
            }
        }
    }

    /// One heartbeat, and what follows from it. Says whom to sweep.
    async fn round(&self, known: &mut Known) -> Result<Vec<NodeId>, BrokerError> {
        // Another memory than before: an old snapshot may hold any state of ours.
        let fences = self.fences();
        if known.fences != fences {
            known.fences = fences;
            self.roster.rewrite(Loss::Forgotten);
        }
        let owner = self.roster.owner();
        let mut heard = self.say(known.name(owner), &known.swept).await?;
        known.swept.clear();
        known.introduced = owner;
        if let Some(loss) = heard.loss {
            tracing::warn!(?loss, "Redis has lost this node's presence; it is written again");
            self.roster.rewrite(loss);
            let owner = self.roster.owner();
            heard.claimed.extend(self.say(Owner::New(owner), &[]).await?.claimed);
            known.introduced = owner;
        }
        self.write().await;
        Ok(heard.claimed)
    }

    fn fences(&self) -> Vec<Fence> {
        let mut fences: Vec<Fence> =
            self.routes.stores().iter().filter_map(|store| store.publisher.link.fence()).collect();
        fences.sort();
        fences
    }

    async fn say(&self, owner: Owner, swept: &[NodeId]) -> Result<Heard, BrokerError> {
        let beat = self.maker.beat(owner, self.config.dead_after, swept);
        heard(self.routes.home().publisher.run(beat).await?)
            .ok_or_else(|| BrokerError::Protocol("an answer to a heartbeat that is none".into()))
    }

    /// Writes what has not been written and can be, for as long as that works and no heartbeat is due. Says whether
    /// something was written.
    async fn write(&self) -> bool {
        let mut written = false;
        let writing = async {
            loop {
                let outcomes = join_all(self.roster.send_unwritten(BATCH, &self.routes)).await;
                let failed = outcomes.iter().filter(|outcome| !matches!(outcome, Ok(Ok(())))).count();
                written |= failed < outcomes.len();
                if failed > 0 || outcomes.is_empty() {
                    return;
                }
            }
        };
        // What is not done by then goes on after the next heartbeat.
        let _ = timeout(self.config.heartbeat, writing).await;
        written
    }

    /// Removes a dead owner's members room by room and tells the others.
    async fn sweep(&self, dead: NodeId) -> Result<(), BrokerError> {
        let mut outcome = Ok(());
        for (store, partitions) in self.routes.shares() {
            // A master that is away must not keep the others from being swept.
            outcome = outcome.and(self.sweep_store(&store, &partitions, dead).await);
        }
        outcome
    }

    async fn sweep_store(&self, store: &Store, partitions: &[Partition], dead: NodeId) -> Result<(), BrokerError> {
        let rooms = store.reads.rooms_of(dead, partitions).await?;
        if !rooms.is_empty() {
            tracing::info!(owner = %dead, rooms = rooms.len(), "removing a dead node's members");
        }
        for room in &rooms {
            self.sweep_room(store, dead, room).await?;
        }
        // What is left names rooms whose sessions others have taken over.
        let partitions: HashSet<Partition> = rooms.iter().map(Partition::of).collect();
        for partition in partitions {
            let mut rest = redis::cmd("DEL");
            rest.arg(self.maker.names.rooms_of(dead, partition));
            store.publisher.run(rest).await?;
        }
        Ok(())
    }

    async fn sweep_room(&self, store: &Store, dead: NodeId, room: &Room) -> Result<(), BrokerError> {
        let mut step = 0;
        loop {
            let (next, sessions) = store.reads.sessions_of(dead, room, step).await?;
            let leaves = sessions.iter().map(|session| {
                let change = Change { room, session, owner: dead, what: What::Leave, tell: true };
                store.publisher.begin(self.maker.update_presence(&change, crate::redis::presence::roster::now_ms()))
            });
            for outcome in join_all(leaves).await {
                outcome?;
            }
            step = next;
            if step == 0 {
                return Ok(());
            }
        }
    }

    /// Everybody leaves, and this node with them. What cannot be written is left for others to sweep.
    pub(crate) async fn close(&self) {
        self.roster.leave_all();
        let closing = async {
            while !self.roster.is_empty() {
                if !self.write().await {
                    return false;
                }
            }
            let mut leave = redis::cmd("ZREM");
            leave.arg(self.maker.names.nodes()).arg(self.roster.owner().to_string());
            self.routes.home().publisher.run(leave).await.is_ok()
        };
        if !timeout(CLOSE_MAX, closing).await.unwrap_or(false) {
            tracing::warn!(
                "not every member's leave was written; other nodes do it when this one's heartbeat is missed"
            );
        }
    }
}

fn heard(answer: Value) -> Option<Heard> {
    let mut words = Vec::<String>::from_redis_value(answer).ok()?.into_iter();
    let loss = match words.next()?.as_str() {
        "alive" => None,
        "swept" => Some(Loss::Swept),
        _ => Some(Loss::Forgotten),
    };
    let claimed = words.filter_map(|word| u64::from_str_radix(&word, 16).ok().map(NodeId)).collect();
    Some(Heard { loss, claimed })
}
