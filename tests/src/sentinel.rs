//! A master, a replica and three Sentinels, for failovers. Called by the failover run. The Sentinels alone decide when
//! a failover happens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::redis::Redis;
use crate::resp;
use crate::wait::eventually;

/// The name under which the Sentinels know the master.
const MASTER: &str = "fanfare";
/// The user as which the replica connects to the master. Disabling it makes the replica lag and affects nothing else.
const FOLLOWER: &str = "follower";
/// The time without an answer after which a Sentinel takes the master for dead.
const DOWN_AFTER_MS: u32 = 1_000;
/// The longest a failover may take: 1 s until the master counts as down, then the votes, then up to 5 s for a second
/// attempt, with room to spare on a slow machine.
pub(crate) const SWITCH_MAX: Duration = Duration::from_secs(30);

/// The whole set of servers; dropping it ends them.
#[derive(Debug)]
pub struct Sentinels {
    /// The server that is the master at first.
    pub master: Redis,
    /// The server that is the replica at first.
    pub replica: Redis,
    sentinels: Vec<(SocketAddr, Process)>,
}

impl Sentinels {
    /// Starts everything and returns once the Sentinels know the replica and each other.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn start(directory: &Path) -> Self {
        let subdirectory = |name: &str| -> PathBuf {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).expect("a directory can be made");
            path
        };
        let acl = format!("{FOLLOWER} on >{FOLLOWER} +psync +replconf +ping");
        let acl: Vec<&str> = ["--user"].into_iter().chain(acl.split(' ')).collect();
        let master = Redis::start_as("master", &subdirectory("master"), &acl).await;
        let port = master.address().port().to_string();
        let mut replica_args = acl.clone();
        replica_args.extend(["--replicaof", "127.0.0.1", &port, "--masteruser", FOLLOWER, "--masterauth", FOLLOWER]);
        let replica = Redis::start_as("replica", &subdirectory("replica"), &replica_args).await;
        eventually("the replica follows", async || {
            replica.values("INFO replication").await.concat().contains("master_link_status:up")
        })
        .await;
        let sentinels =
            (0..3).map(|number| sentinel(&subdirectory(&format!("sentinel{number}")), master.address())).collect();
        let set = Self { master, replica, sentinels };
        eventually("the Sentinels know the replica and each other", async || {
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

    /// The value of a gateway's `--redis`.
    #[must_use]
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.sentinels.iter().map(|(address, _)| address.to_string()).collect();
        format!("redis+sentinel://{}/{MASTER}", addresses.join(","))
    }

    /// Disconnects the replica from the master for good: from now on it misses every write. Other clients notice nothing.
    ///
    /// # Panics
    /// If the master refuses the commands.
    pub async fn hold_replica_back(&self) {
        assert_eq!(self.master.command(&format!("ACL SETUSER {FOLLOWER} off")).await, "+OK");
        assert_ne!(self.master.command("CLIENT KILL TYPE replica").await, ":0", "there was a replica");
    }

    /// Whether a Sentinel reports the first replica as the master, as Sentinels do after `+switch-master`.
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

/// Starts one. Its configuration file lies in its own directory, because a Sentinel rewrites that file.
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
    async fn the_replica_becomes_the_master_and_lacks_what_was_written_after_the_cut() {
        let scratch = Scratch::new();
        let mut set = Sentinels::start(scratch.path()).await;
        set.master.command("SET known 1").await;
        eventually("the replica has it", async || set.replica.values("GET known").await == ["1"]).await;
        set.hold_replica_back().await;
        set.master.command("SET lost 1").await;
        assert!(!set.has_switched().await);
        set.master.kill();
        eventually_within(patient(SWITCH_MAX), "a failover", async || set.has_switched().await).await;
        eventually("the new master takes writes", async || set.replica.command("SET new 1").await == "+OK").await;
        assert_eq!(set.replica.values("MGET known lost new").await, ["1", "1"], "only `known` and `new` have a value");
    }
}
