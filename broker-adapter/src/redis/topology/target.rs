//! `Target`: where one master is now. The connections to that master ask before each attempt, and learn from it when
//! the master is at another server. After a failover sentinels learn of the new master one after the other, so their
//! replies are compared by the epoch in which the master was elected.

use crate::redis::{QueryClient, REFRESH_EVERY, Tasks, address::is_same_server, address::with_host};
use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use redis::ConnectionInfo;
use std::{collections::HashMap, fmt, future::pending, mem::replace, sync::Arc};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// Knows where one master is, from a channel or from sentinels.
#[derive(Clone)]
pub(crate) struct Target {
    server: watch::Receiver<ConnectionInfo>,
    sentinels: Option<Arc<Sentinels>>,
}

impl Target {
    /// The master is at the server that the channel has. Once the sender is gone, it never moves again.
    pub(crate) fn new(server: watch::Receiver<ConnectionInfo>) -> Self {
        Self { server, sentinels: None }
    }

    /// The master is where the sentinels say. A task asks them in intervals until `stop` is true.
    pub(crate) async fn watched_by(
        sentinels: Sentinels,
        tasks: &Tasks,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, String> {
        let sentinels = Arc::new(sentinels);
        let (sender, server) = watch::channel(sentinels.master().await?);
        tasks.essential("Redis Sentinel watch", Arc::clone(&sentinels).watch(sender, stop));
        Ok(Self { server, sentinels: Some(sentinels) })
    }

    /// The server to connect to now. Sentinels are asked again.
    pub(crate) async fn find(&self) -> Result<ConnectionInfo, String> {
        match &self.sentinels {
            Some(sentinels) => sentinels.master().await,
            None => Ok(self.server.borrow().clone()),
        }
    }

    /// Marks the current server as seen by [`Target::moved`].
    pub(crate) fn mark_seen(&mut self) {
        self.server.mark_unchanged();
    }

    /// Waits until the master is at another server than the one seen last, and returns that server's address.
    pub(crate) async fn moved(&mut self) -> String {
        if self.server.changed().await.is_err() {
            return pending().await; // no sender: it never moves again
        }
        self.server.borrow_and_update().addr().to_string()
    }

    /// A name for logs and errors, also before the sentinels have answered.
    pub(crate) fn name(&self) -> String {
        match &self.sentinels {
            Some(sentinels) => format!("sentinels of {}", sentinels.master_name),
            None => self.server.borrow().addr().to_string(),
        }
    }
}

/// The sentinels that watch one master.
pub(crate) struct Sentinels {
    hosts: Vec<ConnectionInfo>,
    master_name: String,
    client: QueryClient,
    /// The reply with the highest epoch so far.
    newest: Mutex<Option<KnownMaster>>,
}

/// A master as a sentinel knows it.
#[derive(Clone)]
struct KnownMaster {
    /// The failover epoch in which it became the master.
    epoch: u64,
    server: ConnectionInfo,
}

impl Sentinels {
    pub(crate) fn new(hosts: Vec<ConnectionInfo>, master_name: String) -> Self {
        Self { hosts, master_name, client: QueryClient::for_sentinels(), newest: Mutex::default() }
    }

    /// The master according to the first sentinel that replies, unless a reply with a higher epoch is known.
    async fn master(&self) -> Result<ConnectionInfo, String> {
        self.ask_all(1).await
    }

    /// Keeps `master` up to date until `stop` is true.
    async fn watch(self: Arc<Self>, master: watch::Sender<ConnectionInfo>, mut stop: watch::Receiver<bool>) {
        let mut turns = interval(REFRESH_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = async {
            loop {
                turns.tick().await;
                let Ok(server) = self.ask_all(self.hosts.len()).await else { continue };
                master.send_if_modified(|now| !is_same_server(&replace(now, server), now));
            }
        };
        tokio::select! {
            () = watching => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// Asks all sentinels at once and takes the newest of the first `enough` replies.
    async fn ask_all(&self, enough: usize) -> Result<ConnectionInfo, String> {
        let mut asking: FuturesUnordered<_> = self.hosts.iter().map(|host| self.ask(host)).collect();
        let (mut replies, mut failure) = (Vec::new(), String::from("there are no sentinels"));
        while let Some(reply) = asking.next().await {
            match reply {
                Ok(known) => replies.push(known),
                Err(why) => failure = why,
            }
            if replies.len() >= enough {
                break;
            }
        }
        let is_majority = replies.len() * 2 > self.hosts.len();
        let best = replies.into_iter().reduce(|best, other| if other.epoch > best.epoch { other } else { best });
        let best = best.ok_or(failure)?;
        let mut newest = self.newest.lock();
        // An operator who has sentinels watch the name anew resets the epochs. A majority with a lower epoch than the
        // known one is therefore believed; a single sentinel with a lower epoch is behind the others.
        let is_outdated = |was: &KnownMaster| was.epoch < best.epoch || (is_majority && was.epoch > best.epoch);
        match &*newest {
            Some(was) if !is_outdated(was) => Ok(was.server.clone()),
            _ => Ok(newest.insert(best).server.clone()),
        }
    }

    async fn ask(&self, host: &ConnectionInfo) -> Result<KnownMaster, String> {
        // MASTER has the epoch. It names the old master for as long as replicas are made to follow the new one, so
        // the address is that of GET-MASTER-ADDR-BY-NAME.
        let mut question = redis::pipe();
        question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master_name);
        question.cmd("SENTINEL").arg("MASTER").arg(&self.master_name);
        let failed = |why: &dyn fmt::Display| format!("sentinel {}: {why}", host.addr());
        let mut replies = self.client.ask(host, &question).await.map_err(|why| failed(&why))?;
        let (Some(about), Some(address)) = (replies.pop(), replies.pop()) else { return Err(failed(&"no reply")) };
        let about: HashMap<String, String> = redis::from_redis_value(about).map_err(|why| failed(&why))?;
        let (name, port): (String, u16) = redis::from_redis_value(address).map_err(|why| failed(&why))?;
        let epoch = about.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        let epoch = epoch.ok_or_else(|| failed(&"malformed reply"))?;
        Ok(KnownMaster { epoch, server: with_host(host, name, port) })
    }
}
