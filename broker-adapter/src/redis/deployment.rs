//! `Deployment`: one address and everything that this node keeps with it, whatever the address names: a server, a
//! master and its sentinels, or a cluster. Each address has its own heartbeats and sweeps.

use crate::{
    BrokerError, PresenceUpdate, Room, Who, envelope,
    redis::{
        Address, AddressKind, ClusterTopology, ConnectError, Heartbeat, LEASES, Master, Membership, NodeContext,
        PresenceChange, PresenceCommand, PresenceEntry, REFRESH_EVERY, Roster, Routes, Sentinels, Sweeper, Target,
        WriteCommand, presence::roster::Written,
    },
};
use futures_util::future::try_join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

/// The shortest interval between two looks at a cluster.
const REFRESH_MIN: Duration = Duration::from_millis(50);

/// The masters of one address, and the presence of this node's sessions there.
pub(crate) struct Deployment {
    pub(crate) routes: Arc<Routes>,
    heartbeat: Arc<Heartbeat>,
    /// Ends the tasks, also by being dropped.
    stop: watch::Sender<bool>,
}

impl Deployment {
    /// Connects once. `of` distinguishes its connections in the log from those of other addresses.
    pub(crate) async fn connect(context: Arc<NodeContext>, address: &Address, of: &str) -> Result<Self, ConnectError> {
        let (stop, stopped) = watch::channel(false);
        let refused = |why: String| ConnectError::Refused { address: address.to_string(), why };
        let routes = match &address.kind {
            AddressKind::Cluster => {
                let mut topology = ClusterTopology::new(address.hosts.clone());
                let routes = Arc::new(Routes::default());
                routes.update(&context, topology.look().await?);
                try_join_all(routes.masters().iter().map(|master| master.ready())).await?;
                let following = follow(topology, context.clone(), routes.clone(), stopped.clone());
                context.tasks.essential("Redis Cluster topology", following);
                routes
            }
            AddressKind::Sentinel(master_name) => {
                let sentinels = Sentinels::new(address.hosts.clone(), master_name.clone());
                let target = Target::watched_by(sentinels, &context.tasks, stopped.clone()).await.map_err(refused)?;
                routes_of_one(&context, &target, of).await?
            }
            AddressKind::Server => {
                let (_, server) = watch::channel(address.hosts[0].clone());
                routes_of_one(&context, &Target::new(server), of).await?
            }
        };
        let roster = Arc::new(Roster::new(context.builder.node));
        let tasks = context.tasks.clone();
        let sweeper = Arc::new(Sweeper { context: Arc::clone(&context), routes: Arc::clone(&routes) });
        let refusals = Arc::clone(&context.refusals);
        let heartbeat = Arc::new(Heartbeat { context, routes: routes.clone(), roster, sweeper });
        heartbeat.begin().await.map_err(|why: BrokerError| refused(refusals.with_last_words(&why)))?;
        tasks.essential("Redis heartbeat", Arc::clone(&heartbeat).run(stopped));
        Ok(Self { routes, heartbeat, stop })
    }

    pub(crate) fn update_presence(&self, room: &Room, update: PresenceUpdate) -> oneshot::Receiver<Written> {
        let publisher = &self.routes.master(room).publisher;
        match lease(room, &update) {
            Some(change) => {
                let (done, written) = oneshot::channel();
                let completion = Box::new(|result| drop(done.send(result))); // the caller may have stopped waiting
                let refused = publisher.send(WriteCommand::Presence(PresenceCommand::new(change, completion)));
                if let Some((command, why)) = refused {
                    command.complete(Err(why));
                }
                written
            }
            None => self.heartbeat.roster.update(room, update, publisher),
        }
    }

    /// Writes what is pending, and closes the connections.
    pub(crate) async fn close(&self) {
        self.heartbeat.close().await;
        self.stop.send_replace(true);
        self.routes.masters().iter().for_each(|master| master.close());
    }
}

/// The change that renews or ends a lease, which no node keeps in its roster; `None` for another update.
fn lease(room: &Room, update: &PresenceUpdate) -> Option<PresenceChange> {
    let (session, announce, ttl) = match *update {
        PresenceUpdate::Lease { session, announce, ttl } => (session, announce, Some(ttl)),
        PresenceUpdate::EndLease { session, announce } => (session, announce, None),
        PresenceUpdate::Enter { .. } | PresenceUpdate::Leave { .. } => return None,
    };
    let enter = ttl.map(|ttl| PresenceEntry {
        payload: envelope::presence_payload(&Who::Session(session), None),
        announce_leave: announce,
        lease: Some(ttl),
    });
    Some(PresenceChange { membership: Membership { room: room.clone(), session }, owner: LEASES, enter, announce })
}

async fn routes_of_one(context: &Arc<NodeContext>, target: &Target, of: &str) -> Result<Arc<Routes>, ConnectError> {
    let master = Master::start(context, target, of, Vec::new());
    master.ready().await?;
    Ok(Arc::new(Routes::of_one(master)))
}

/// Keeps the routes of a cluster up to date until `stop` is true: looks in intervals, and at once when a reply has
/// shown that a room is not where the routes say.
async fn follow(
    mut topology: ClusterTopology,
    context: Arc<NodeContext>,
    routes: Arc<Routes>,
    mut stop: watch::Receiver<bool>,
) {
    let following = async {
        loop {
            let began = Instant::now();
            match topology.look().await {
                Ok(assignments) => routes.update(&context, assignments),
                Err(why) => tracing::debug!(%why, "the cluster's slots are not known"),
            }
            sleep_until(began + REFRESH_MIN).await;
            let _ = timeout(REFRESH_EVERY, context.events.refresh.notified()).await;
        }
    };
    tokio::select! {
        () = following => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}
