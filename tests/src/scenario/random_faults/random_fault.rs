//! The random faults: to the connections of a node, to a node, to Redis. Each begins, lasts for a time, and ends. Called
//! by the run.

use std::time::Duration;

use super::faulty_cluster::FaultyCluster;
use crate::fault::{Direction, Fault};
use crate::rng::Rng;
use crate::wait::patient;

/// The node whose memory is measured: it may hang and be cut off, but it is never killed or drained.
pub(super) const NEVER_RESTARTED: usize = 2;

/// A fault, with the index of its node if it has one.
#[derive(Clone, Debug)]
pub(super) enum RandomFault {
    /// A fault of the connections between a node and Redis.
    RedisConnections(usize, Fault),
    /// A fault of the connections between clients and a node.
    ClientConnections(usize, Fault),
    /// All connections of a node to Redis are reset once.
    RedisConnectionsReset(usize),
    /// All connections of a node's clients are reset once.
    ClientConnectionsReset(usize),
    NodeKilled(usize),
    NodeHangs(usize),
    NodeDrained(usize),
    RedisKilled,
    RedisHangs,
    /// Redis is killed and comes back with a snapshot, taken at the start of the run or at the last such fault.
    RedisRollsBack,
    RedisFlushed,
    SubscribersKilled,
    ScriptsFlushed,
}

impl RandomFault {
    /// Draws one or two faults, to happen one after the other.
    pub(super) fn draw(rng: &mut Rng) -> Vec<Self> {
        (0..=rng.below(2)).map(|_| Self::draw_one(rng)).collect()
    }

    fn draw_one(rng: &mut Rng) -> Self {
        let node = rng.index(3);
        let restartable = rng.index(NEVER_RESTARTED);
        match rng.below(16) {
            0..=3 => Self::RedisConnections(node, draw_connection_fault(rng)),
            4..=6 => Self::ClientConnections(node, draw_connection_fault(rng)),
            7 => Self::RedisConnectionsReset(node),
            8 => Self::ClientConnectionsReset(node),
            9 => Self::NodeKilled(restartable),
            10 => Self::NodeHangs(node),
            11 => Self::NodeDrained(restartable),
            12 => Self::RedisHangs,
            13 => Self::SubscribersKilled,
            14 => Self::ScriptsFlushed,
            _ => match rng.below(3) {
                0 => Self::RedisKilled,
                1 => Self::RedisRollsBack,
                _ => Self::RedisFlushed,
            },
        }
    }

    pub(super) async fn begin(&self, to: &mut FaultyCluster) {
        match self {
            Self::RedisConnections(node, fault) => to.redis_proxies[*node].set(fault.clone()),
            Self::ClientConnections(node, fault) => to.client_proxies[*node].set(fault.clone()),
            Self::RedisConnectionsReset(node) => to.redis_proxies[*node].reset(),
            Self::ClientConnectionsReset(node) => to.client_proxies[*node].reset(),
            Self::NodeKilled(node) => to.cluster.nodes[*node].kill(),
            Self::NodeHangs(node) => to.cluster.nodes[*node].signal("STOP"),
            Self::NodeDrained(node) => to.cluster.nodes[*node].terminate(),
            Self::RedisKilled | Self::RedisRollsBack => to.redis.kill(),
            Self::RedisHangs => to.redis.signal("STOP"),
            Self::RedisFlushed => drop(to.redis.command("FLUSHALL").await),
            Self::SubscribersKilled => drop(to.redis.command("CLIENT KILL TYPE pubsub").await),
            Self::ScriptsFlushed => drop(to.redis.command("SCRIPT FLUSH").await),
        }
    }

    pub(super) async fn end(&self, to: &mut FaultyCluster) {
        match self {
            Self::RedisConnections(node, _) => to.redis_proxies[*node].heal(),
            Self::ClientConnections(node, _) => to.client_proxies[*node].heal(),
            Self::NodeKilled(node) => to.cluster.nodes[*node].restart().await,
            Self::NodeHangs(node) => to.cluster.nodes[*node].signal("CONT"),
            Self::NodeDrained(node) => {
                // The drain takes 2 s, and the process needs some time to exit.
                to.cluster.nodes[*node].exit(patient(Duration::from_secs(10))).await;
                to.cluster.nodes[*node].restart().await;
            }
            Self::RedisKilled => to.redis.start_empty().await,
            Self::RedisHangs => to.redis.signal("CONT"),
            Self::RedisRollsBack => {
                to.redis.start_from(&to.snapshot).await;
                to.snapshot = to.redis.snapshot().await;
            }
            Self::RedisConnectionsReset(_)
            | Self::ClientConnectionsReset(_)
            | Self::RedisFlushed
            | Self::SubscribersKilled
            | Self::ScriptsFlushed => {}
        }
    }
}

fn draw_connection_fault(rng: &mut Rng) -> Fault {
    match rng.below(7) {
        0 => {
            let jitter = Duration::from_millis(rng.below(200));
            Fault::Delay { least: Duration::from_millis(rng.below(200)), jitter }
        }
        1 => Fault::Stall,
        2 => Fault::BlackHole(Direction::ToServer),
        3 => Fault::BlackHole(Direction::ToClient),
        4 => Fault::CutAfter(rng.below(50_000)),
        5 => Fault::Chop,
        _ => Fault::Reset,
    }
}
