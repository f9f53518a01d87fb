//! One address and everything that this node keeps with it: a server, a master and its sentinels, or a cluster. Rooms of
//! one address share their heartbeats and sweeps and nothing with other addresses.

use crate::redis::{
    address::{Address, Kind},
    connection::keep::ConnectError,
    master::{Base, Store},
    presence::heartbeat::Keeper,
    presence::roster::Roster,
    routes::Routes,
    topology::cluster::Scout,
    topology::sentinel::{Sentinels, Target},
};
use crate::{BrokerError, PresenceUpdate, Room};
use futures_util::future::try_join_all;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// See the module's head.
pub(crate) struct Site {
    pub(crate) routes: Arc<Routes>,
    roster: Arc<Roster>,
    keeper: Arc<Keeper>,
    /// Ends the tasks, also by being dropped.
    stop: watch::Sender<bool>,
}

impl Site {
    /// Connects once. `of` tells its connections from those of others in the log.
    pub(crate) async fn connect(base: Base, address: &Address, of: &str) -> Result<Self, ConnectError> {
        let (stop, stopped) = watch::channel(false);
        let routes = match &address.kind {
            Kind::Cluster => {
                let mut scout = Scout::new(address.hosts.clone());
                let routes = Arc::new(Routes::default());
                let stores = routes.update(&base, scout.look().await?);
                try_join_all(stores.into_iter().map(|(store, firsts)| async move { store.ready(firsts).await }))
                    .await?;
                tokio::spawn(scout.keep(base.clone(), routes.clone(), stopped.clone()));
                routes
            }
            Kind::Sentinel(service) => {
                let sentinels = Sentinels::new(address.hosts.clone(), service.clone());
                let refused = |why: String| ConnectError::Refused { address: address.to_string(), why };
                one(&base, &Target::asked(sentinels, stopped.clone()).await.map_err(refused)?, of).await?
            }
            Kind::Server => {
                let (_, told) = watch::channel(address.hosts[0].clone());
                one(&base, &Target::told(told), of).await?
            }
        };
        let roster = Arc::new(Roster::new(base.node));
        let (config, maker) = (base.config.clone(), base.maker());
        let keeper = Keeper { config, bell: base.bell, routes: routes.clone(), roster: roster.clone(), maker };
        let keeper = Arc::new(keeper);
        let failed = |why: BrokerError| ConnectError::Refused { address: address.to_string(), why: why.to_string() };
        keeper.introduce().await.map_err(failed)?;
        tokio::spawn(Arc::clone(&keeper).keep(stopped));
        Ok(Self { routes, roster, keeper, stop })
    }

    pub(crate) fn update_presence(
        &self,
        room: &Room,
        attendance: PresenceUpdate,
    ) -> oneshot::Receiver<Result<(), BrokerError>> {
        self.roster.update_presence(room, attendance, &self.routes.store(room).publisher)
    }

    /// Writes what is pending, and ends.
    pub(crate) async fn close(&self) {
        self.keeper.close().await;
        self.stop.send_replace(true);
        self.routes.stores().iter().for_each(|store| store.close());
    }
}

async fn one(base: &Base, target: &Target, of: &str) -> Result<Arc<Routes>, ConnectError> {
    let (store, firsts) = Store::start(base, target, of, Vec::new());
    store.ready(firsts).await?;
    Ok(Arc::new(Routes::of_one(store)))
}
