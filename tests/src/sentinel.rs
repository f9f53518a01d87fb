//! A master, a replica and three Sentinels, for failovers. Called by the failover run; it decides nothing about when a
//! failover is due, the Sentinels do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::redis::Redis;
use crate::resp;
use crate::wait::eventually;

/// What the Sentinels call the master.
const MASTER: &str = "fanfare";
/// The user as which the replica follows the master: taken away, the replica lags while everything else goes on.
const FOLLOWER: &str = "follower";
/// After so long without an answer a Sentinel holds the master for dead.
const DOWN_AFTER_MS: u32 = 1_000;
/// How long a failover may take: 1 s until the master is down, then votes, then up to 5 s for another try.
pub(crate) const SWITCH_MAX: Duration = Duration::from_secs(30);

/// The whole set; ends with this.
#[derive(Debug)]
pub struct Sentinels {
    /// The master of the beginning.
    pub master: Redis,
    /// The replica of the beginning.
    pub replica: Redis,
    sentinels: Vec<(SocketAddr, Process)>,
}

impl Sentinels {
    /// Starts everything and returns once the Sentinels know the replica and each other.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn start(directory: &Path) -> Self {
        let own = |name: &str| -> PathBuf {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).expect("a directory can be made");
            path
        };
        let acl = format!("{FOLLOWER} on >{FOLLOWER} +psync +replconf +ping");
        let acl: Vec<&str> = ["--user"].into_iter().chain(acl.split(' ')).collect();
        let master = Redis::start_as("master", &own("master"), &acl).await;
        let port = master.address().port().to_string();
        let mut follows = acl.clone();
        follows.extend(["--replicaof", "127.0.0.1", &port, "--masteruser", FOLLOWER, "--masterauth", FOLLOWER]);
        let replica = Redis::start_as("replica", &own("replica"), &follows).await;
        eventually("the replica follows", async || {
            replica.values("INFO replication").await.concat().contains("master_link_status:up")
        })
        .await;
        let sentinels = (0..3).map(|number| sentinel(&own(&format!("sentinel{number}")), master.address())).collect();
        let set = Self { master, replica, sentinels };
        eventually("the Sentinels know everybody", async || {
            for (address, _) in &set.sentinels {
                let about = resp::ask(*address, &format!("SENTINEL MASTER {MASTER}")).await.unwrap_or_default();
                let field = |name: &str| about.iter().skip_while(|value| *value != name).nth(1).cloned();
                if field("num-slaves").as_deref() != Some("1") || field("num-other-sentinels").as_deref() != Some("2") {
                    return false;
                }
            }
            true
        })
        .await;
        set
    }

    /// What gateways are told.
    #[must_use]
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.sentinels.iter().map(|(address, _)| address.to_string()).collect();
        format!("redis+sentinel://{}/{MASTER}", addresses.join(","))
    }

    /// Cuts the replica off from the master, and keeps it off: it lags from here on, and nobody else notices.
    ///
    /// # Panics
    /// When the master does not obey.
    pub async fn hold_replica_back(&self) {
        assert_eq!(self.master.command(&format!("ACL SETUSER {FOLLOWER} off")).await, "+OK");
        assert_ne!(self.master.command("CLIENT KILL TYPE replica").await, ":0", "there was a replica");
    }

    /// Whether a Sentinel names the replica of the beginning as the master, as they do from `+switch-master` on.
    pub async fn has_switched(&self) -> bool {
        for (address, _) in &self.sentinels {
            let named = resp::ask(*address, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}")).await;
            if named.is_ok_and(|named| named.get(1) == Some(&self.replica.address().port().to_string())) {
                return true;
            }
        }
        false
    }
}

/// Starts one; a Sentinel writes into its own configuration file.
fn sentinel(directory: &Path, master: SocketAddr) -> (SocketAddr, Process) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let text = format!(
        "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} {} {} 2\n\
         sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\nsentinel failover-timeout {MASTER} 5000\n",
        address.port(),
        directory.display(),
        master.ip(),
        master.port()
    );
    let file = directory.join("sentinel.conf");
    std::fs::write(&file, text).expect("a configuration file can be written");
    (address, Launch::new("sentinel", "redis-server").arg(file).arg("--sentinel").start(directory))
}

#[cfg(test)]
mod tests {
    use super::{SWITCH_MAX, Sentinels};
    use crate::scratch::Scratch;
    use crate::wait::{eventually, eventually_within, patient};

    #[tokio::test]
    async fn the_replica_becomes_the_master_without_what_it_was_kept_from() {
        let scratch = Scratch::new();
        let mut set = Sentinels::start(scratch.path()).await;
        set.master.command("SET known 1").await;
        eventually("the replica has it", async || set.replica.values("GET known").await == ["1"]).await;
        set.hold_replica_back().await;
        set.master.command("SET lost 1").await;
        assert!(!set.has_switched().await);
        set.master.kill();
        eventually_within(patient(SWITCH_MAX), "a failover", async || set.has_switched().await).await;
        eventually("it takes writes", async || set.replica.command("SET new 1").await == "+OK").await;
        assert_eq!(set.replica.values("MGET known lost new").await, ["1", "1"], "a nil is no value");
    }
}
