//! Where a store's master is: always the same server, or whoever the sentinels or the cluster say. Says so anew for
//! each connection, and tells when it has changed. Connects to sentinels only.

use crate::redis::address::elsewhere;
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, Pipeline, RedisResult, Value, aio::MultiplexedConnection,
};
use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

/// How long one who knows may take to answer: others are asked at the same time.
pub(crate) const ASK_MAX: Duration = Duration::from_millis(500);
/// How often they are asked unasked-for: deliveries are back so long after a failover, at most, and a handshake.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(250);

/// See the module's head.
#[derive(Clone)]
pub(crate) struct Target {
    now: watch::Receiver<ConnectionInfo>,
    sentinels: Option<Arc<Sentinels>>,
}

impl Target {
    /// Wherever the other end says; the same for ever once that is gone.
    pub(crate) fn told(now: watch::Receiver<ConnectionInfo>) -> Self {
        Self { now, sentinels: None }
    }

    /// Whoever the sentinels say is the master. They are asked now and then until `stop` is true.
    pub(crate) async fn asked(sentinels: Sentinels, stop: watch::Receiver<bool>) -> Result<Self, String> {
        let sentinels = Arc::new(sentinels);
        let (tell, now) = watch::channel(sentinels.master(false).await?);
        tokio::spawn(Arc::clone(&sentinels).watch(tell, stop));
        Ok(Self { now, sentinels: Some(sentinels) })
    }

    /// Whom to connect to now.
    pub(crate) async fn find(&self) -> Result<ConnectionInfo, String> {
        match &self.sentinels {
            Some(sentinels) => sentinels.master(false).await,
            None => Ok(self.now.borrow().clone()),
        }
    }

    /// What was said so far is known.
    pub(crate) fn settle(&mut self) {
        self.now.mark_unchanged();
    }

    /// Waits until it is said to be somewhere else than it was said before.
    pub(crate) async fn moved(&mut self) -> String {
        if self.now.changed().await.is_err() {
            // Nobody will say so any more.
            return pending().await;
        }
        self.now.borrow_and_update().addr().to_string()
    }

    /// What it is called before anybody has said where it is.
    pub(crate) fn name(&self) -> String {
        match &self.sentinels {
            Some(sentinels) => format!("sentinels of {}", sentinels.service),
            None => self.now.borrow().addr().to_string(),
        }
    }
}

/// Those who know the master of a name.
pub(crate) struct Sentinels {
    hosts: Vec<ConnectionInfo>,
    service: String,
    phone: Phone,
    /// The newest answer and its epoch: after a failover sentinels learn of it one after the other.
    newest: Mutex<Option<(u64, ConnectionInfo)>>,
}

impl Sentinels {
    pub(crate) fn new(hosts: Vec<ConnectionInfo>, service: String) -> Self {
        Self { hosts, service, phone: Phone::to_strangers(), newest: Mutex::default() }
    }

    /// As the first one says that answers, unless another has said something newer; or as the newest of `all` says.
    async fn master(&self, all: bool) -> Result<ConnectionInfo, String> {
        let mut answers: FuturesUnordered<_> = self.hosts.iter().map(|host| self.ask(host)).collect();
        let (mut said, mut last) = (Vec::new(), String::from("there are no sentinels"));
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => said.push(answer),
                Err(why) => last = why,
            }
            if !said.is_empty() && !all {
                break;
            }
        }
        let majority = said.len() * 2 > self.hosts.len();
        let best = said.into_iter().reduce(|best, other| if other.0 > best.0 { other } else { best }).ok_or(last)?;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        // Epochs begin anew where sentinels are told to watch a name again: most of them are to be believed.
        let outdated = newest.as_ref().is_none_or(|(was, _)| *was < best.0 || (majority && *was > best.0));
        Ok(if outdated { newest.insert(best) } else { newest.get_or_insert(best) }.1.clone())
    }

    /// The master and the epoch in which it became one. While replicas are made to follow a new master, its address is
    /// known to the first question only.
    async fn ask(&self, host: &ConnectionInfo) -> Result<(u64, ConnectionInfo), String> {
        let mut question = redis::pipe();
        question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        question.cmd("SENTINEL").arg("MASTER").arg(&self.service);
        let failed = |why: &dyn std::fmt::Display| format!("sentinel {}: {why}", host.addr());
        let mut answers = self.phone.ask(host, &question).await.map_err(|why| failed(&why))?;
        if let Some(Value::ServerError(why)) = answers.iter().find(|answer| matches!(answer, Value::ServerError(_))) {
            return Err(failed(why));
        }
        let (Some(about), Some(address)) = (answers.pop(), answers.pop()) else { return Err(failed(&"no answer")) };
        let about: HashMap<String, String> = redis::from_redis_value(about).map_err(|why| failed(&why))?;
        let (name, port): (String, u16) = redis::from_redis_value(address).map_err(|why| failed(&why))?;
        let epoch = about.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        let epoch = epoch.ok_or_else(|| failed(&"an answer that is none"))?;
        Ok((epoch, elsewhere(host, name, port)))
    }

    async fn watch(self: Arc<Self>, tell: watch::Sender<ConnectionInfo>, mut stop: watch::Receiver<bool>) {
        let mut turns = interval(ASK_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = async {
            loop {
                turns.tick().await;
                let Ok(master) = self.master(true).await else { continue };
                tell.send_if_modified(|was| {
                    let moved = was.addr().to_string() != master.addr().to_string();
                    if moved {
                        *was = master;
                    }
                    moved
                });
            }
        };
        tokio::select! {
            () = watching => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Short questions to servers, over a connection that is kept for the next one.
#[derive(Default)]
pub(crate) struct Phone {
    /// Sentinels may have other users than their masters, or none.
    strangers: bool,
    open: Mutex<HashMap<String, MultiplexedConnection>>,
}

impl Phone {
    /// To servers that may not know the credentials of the address.
    fn to_strangers() -> Self {
        Self { strangers: true, ..Self::default() }
    }

    /// The answers, errors among them as values.
    pub(crate) async fn ask(&self, host: &ConnectionInfo, question: &Pipeline) -> RedisResult<Vec<Value>> {
        let name = host.addr().to_string();
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let asking = async {
            let known = open().get(&name).cloned();
            let mut conn = match known {
                Some(conn) => conn,
                None => self.connect(host).await?,
            };
            let answers = conn.send_packed_commands(question, 0, question.len()).await?;
            open().insert(name.clone(), conn);
            Ok(answers)
        };
        let answers =
            timeout(ASK_MAX, asking).await.unwrap_or_else(|_| Err((ErrorKind::Io, "no answer in time").into()));
        if answers.is_err() {
            open().remove(&name);
        }
        answers
    }

    /// Hangs up on everybody else.
    pub(crate) fn keep(&self, hosts: &[ConnectionInfo]) {
        let names: Vec<String> = hosts.iter().map(|host| host.addr().to_string()).collect();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
    }

    async fn connect(&self, host: &ConnectionInfo) -> RedisResult<MultiplexedConnection> {
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(Some(ASK_MAX)).set_response_timeout(Some(ASK_MAX));
        if !self.strangers {
            return crate::redis::connection::keep::client(host.clone())?
                .get_multiplexed_async_connection_with_config(&settings)
                .await;
        }
        let info = host.redis_settings();
        let anonymous = host.clone().set_redis_settings(redis::RedisConnectionInfo::default());
        let mut conn = Client::open(anonymous)?.get_multiplexed_async_connection_with_config(&settings).await?;
        if let Some(password) = info.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(info.username()).arg(password);
            // A sentinel without a password refuses any; one that wants another refuses the question.
            let _: RedisResult<Value> = conn.send_packed_command(&auth).await;
        }
        Ok(conn)
    }
}
