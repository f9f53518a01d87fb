//! What a cluster says about itself: who is the master of which slots. Asked now and then, and at once when an answer
//! shows that what is known is wrong.

use crate::redis::{
    address::elsewhere,
    connection::keep::ConnectError,
    keys::{PARTITIONS, Partition},
    master::Base,
    routes::{Routes, Share},
    topology::sentinel::{ASK_EVERY, Phone},
};
use futures_util::future::join_all;
use redis::{ConnectionInfo, Value};
use std::sync::Arc;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until, timeout},
};

/// Between two rounds of questions, at least.
const ASK_MIN: Duration = Duration::from_millis(50);
/// Slots of a cluster.
const SLOTS: usize = 16384;

/// See the module's head.
pub(crate) struct Scout {
    /// Those who were named at the start; they count as long as nobody else answers.
    seeds: Vec<ConnectionInfo>,
    masters: Vec<ConnectionInfo>,
    phone: Phone,
}

impl Scout {
    pub(crate) fn new(seeds: Vec<ConnectionInfo>) -> Self {
        Self { seeds, masters: Vec::new(), phone: Phone::default() }
    }

    /// How the slots are divided, as the one says who has seen most.
    pub(crate) async fn look(&mut self) -> Result<Vec<Share>, ConnectError> {
        let mut hosts = self.masters.clone();
        let unknown = |seed: &&ConnectionInfo| !hosts.iter().any(|host| same(host, seed));
        let seeds: Vec<_> = self.seeds.iter().filter(unknown).cloned().collect();
        hosts.extend(seeds);
        self.phone.keep(&hosts);
        let answers = join_all(hosts.iter().map(|host| self.ask(host))).await;
        let mut last = None;
        let mut best: Option<(u64, Vec<Share>)> = None;
        for (host, answer) in hosts.iter().zip(answers) {
            match answer {
                Ok(seen) if best.as_ref().is_none_or(|(epoch, _)| *epoch < seen.0) => best = Some(seen),
                Ok(_) => {}
                Err(why) => last = Some(ConnectError::Refused { address: host.addr().to_string(), why }),
            }
        }
        let Some((_, shares)) = best else {
            let nobody = || ConnectError::Refused { address: "the cluster".into(), why: "has no members".into() };
            return Err(last.unwrap_or_else(nobody));
        };
        self.masters = shares.iter().map(|share| share.master.clone()).collect();
        Ok(shares)
    }

    async fn ask(&self, host: &ConnectionInfo) -> Result<(u64, Vec<Share>), String> {
        let mut question = redis::pipe();
        question.cmd("CLUSTER").arg("INFO");
        question.cmd("CLUSTER").arg("SLOTS");
        let answers = self.phone.ask(host, &question).await.map_err(|why| why.to_string())?;
        if let Some(Value::ServerError(why)) = answers.iter().find(|answer| matches!(answer, Value::ServerError(_))) {
            return Err(format!("{} {}", why.code(), why.details().unwrap_or_default()));
        }
        let [info, slots] = <[Value; 2]>::try_from(answers).map_err(|_| "too few answers")?;
        let info: String = redis::from_redis_value(info).map_err(|why| why.to_string())?;
        let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name));
        if field("cluster_state:") != Some("ok") {
            return Err("the cluster is down, as it says".into());
        }
        let epoch = field("cluster_current_epoch:").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Ok((epoch, shares(slots, host).ok_or("its slots cannot be read, or not every slot has a master")?))
    }

    /// Keeps `routes` true until `stop` is true.
    pub(crate) async fn keep(mut self, base: Base, routes: Arc<Routes>, mut stop: watch::Receiver<bool>) {
        let keeping = async {
            loop {
                let asked = Instant::now();
                match self.look().await {
                    Ok(shares) => drop(routes.update(&base, shares)),
                    Err(why) => tracing::debug!(%why, "the cluster's slots are not known"),
                }
                sleep_until(asked + ASK_MIN).await;
                let _ = timeout(ASK_EVERY, base.bell.doubted()).await;
            }
        };
        tokio::select! {
            () = keeping => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

fn same(one: &ConnectionInfo, other: &ConnectionInfo) -> bool {
    one.addr().to_string() == other.addr().to_string()
}

/// Reads CLUSTER SLOTS: ranges of first slot, last slot, master, replicas; `None` unless every partition has a master.
fn shares(slots: Value, asked: &ConnectionInfo) -> Option<Vec<Share>> {
    let mut owners: Vec<Option<(String, u16)>> = vec![None; SLOTS];
    let Value::Array(ranges) = slots else { return None };
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => String::from_utf8(host.clone()).ok()?,
            // It does not know its own address, so it is the one under which it was asked.
            _ => asked_host(asked),
        };
        let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
        owners.get_mut(first..=last)?.fill(Some((host, u16::try_from(*port).ok()?)));
    }
    let mut shares: Vec<((String, u16), Share)> = Vec::with_capacity(PARTITIONS);
    for partition in Partition::all() {
        let owner = owners[usize::from(partition.slot())].clone()?;
        match shares.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, share)) => share.partitions.push(partition),
            None => {
                let master = elsewhere(asked, owner.0.clone(), owner.1);
                shares.push((owner, Share { master, partitions: vec![partition] }));
            }
        }
    }
    Some(shares.into_iter().map(|(_, share)| share).collect())
}

fn asked_host(asked: &ConnectionInfo) -> String {
    match asked.addr() {
        redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}
