//! `ClusterTopology`: asks a cluster which master has which slots, once per call. `deployment.rs` calls in intervals.

use crate::redis::{ConnectError, PARTITIONS, Partition, QueryClient, address::is_same_server, address::with_host};
use futures_util::future::join_all;
use redis::{ConnectionAddr, ConnectionInfo, Value};

/// The slots of a cluster.
const SLOTS: usize = 16384;

/// A master, and the partitions whose slots it has.
pub(crate) struct Assignment {
    pub(crate) master: ConnectionInfo,
    pub(crate) partitions: Vec<Partition>,
}

/// Knows the masters of one cluster.
pub(crate) struct ClusterTopology {
    /// The members that the address names. They are asked too, in case all known masters are gone.
    seeds: Vec<ConnectionInfo>,
    masters: Vec<ConnectionInfo>,
    client: QueryClient,
}

/// The cluster as one member sees it, after its epoch, which grows with each change of the cluster.
type View = (u64, Vec<Assignment>);

impl ClusterTopology {
    pub(crate) fn new(seeds: Vec<ConnectionInfo>) -> Self {
        Self { seeds, masters: Vec::new(), client: QueryClient::default() }
    }

    /// Asks all members at once and returns the view of the one with the highest epoch.
    pub(crate) async fn look(&mut self) -> Result<Vec<Assignment>, ConnectError> {
        let mut hosts = self.masters.clone();
        let is_unknown = |seed: &&ConnectionInfo| !hosts.iter().any(|host| is_same_server(host, seed));
        let seeds: Vec<_> = self.seeds.iter().filter(is_unknown).cloned().collect();
        hosts.extend(seeds);
        self.client.retain(&hosts);
        let views = join_all(hosts.iter().map(|host| self.ask(host))).await;
        let mut failure = ConnectError::Refused { address: "the cluster".into(), why: "has no members".into() };
        let mut best: Option<View> = None;
        for (host, view) in hosts.iter().zip(views) {
            match view {
                Ok(view) if best.as_ref().is_none_or(|best| best.0 < view.0) => best = Some(view),
                Ok(_) => {}
                Err(why) => failure = ConnectError::Refused { address: host.addr().to_string(), why },
            }
        }
        let (_, assignments) = best.ok_or(failure)?;
        self.masters = assignments.iter().map(|assignment| assignment.master.clone()).collect();
        Ok(assignments)
    }

    async fn ask(&self, host: &ConnectionInfo) -> Result<View, String> {
        let mut question = redis::pipe();
        question.cmd("CLUSTER").arg("INFO");
        question.cmd("CLUSTER").arg("SLOTS");
        let replies = self.client.ask(host, &question).await.map_err(|why| why.to_string())?;
        let [info, slots] = <[Value; 2]>::try_from(replies).map_err(|_| "too few replies")?;
        let info: String = redis::from_redis_value(info).map_err(|why| why.to_string())?;
        let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name));
        if field("cluster_state:") != Some("ok") {
            return Err("the cluster reports that it is down".into());
        }
        let epoch = field("cluster_current_epoch:").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let assignments = assignments(slots, host).ok_or("malformed CLUSTER SLOTS, or a slot without a master")?;
        Ok((epoch, assignments))
    }
}

/// Reads CLUSTER SLOTS: ranges of first slot, last slot, master, replicas. `None` unless every partition has a master.
fn assignments(slots: Value, asked: &ConnectionInfo) -> Option<Vec<Assignment>> {
    let mut owners: Vec<Option<(String, u16)>> = vec![None; SLOTS];
    let Value::Array(ranges) = slots else { return None };
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => String::from_utf8(host.clone()).ok()?,
            // A member that does not know its own address has the one under which it was asked.
            _ => match asked.addr() {
                ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
                _ => return None,
            },
        };
        let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
        owners.get_mut(first..=last)?.fill(Some((host, u16::try_from(*port).ok()?)));
    }
    let mut assignments: Vec<((String, u16), Assignment)> = Vec::with_capacity(PARTITIONS);
    for partition in Partition::all() {
        let owner = owners[usize::from(partition.slot())].clone()?;
        match assignments.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, assignment)) => assignment.partitions.push(partition),
            None => {
                let master = with_host(asked, owner.0.clone(), owner.1);
                assignments.push((owner, Assignment { master, partitions: vec![partition] }));
            }
        }
    }
    Some(assignments.into_iter().map(|(_, assignment)| assignment).collect())
}
