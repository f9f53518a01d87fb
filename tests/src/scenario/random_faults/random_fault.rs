//! What can happen: to the connections of a node, to a node, to Redis. Each falls, lasts, and passes. Called by the random
//! run alone.

use std::time::Duration;

use super::Stage;
use crate::fault::{Direction, Fault};
use crate::rng::Rng;
use crate::wait::patient;

/// The node whose memory is watched: it may hang and be cut off, but it lives.
pub(super) const NEVER_RESTARTED: usize = 2;

/// One fault, with the number of the node where there is one.
#[derive(Clone, Debug)]
pub(super) enum RandomFault {
    /// Of the connections between a node and Redis.
    RedisConnections(usize, Fault),
    /// Of the connections between clients and a node.
    ClientConnections(usize, Fault),
    /// All of a node's connections to Redis are reset, once.
    RedisConnectionsReset(usize),
    /// All of a node's clients are reset, once.
    ClientConnectionsReset(usize),
    NodeKilled(usize),
    NodeHangs(usize),
    NodeDrained(usize),
    RedisKilled,
    RedisHangs,
    /// Killed, and back with a snapshot from the beginning or from the last time.
    RedisRollsBack,
    RedisFlushed,
    SubscribersKilled,
    ScriptsFlushed,
}

impl RandomFault {
    /// One or two that come one after the other.
    pub(super) fn draw(rng: &mut Rng) -> Vec<Self> {
        (0..=rng.below(2)).map(|_| Self::draw_one(rng)).collect()
    }

    fn draw_one(rng: &mut Rng) -> Self {
        let node = rng.index(3);
        let mortal = rng.index(NEVER_RESTARTED);
        match rng.below(16) {
            0..=3 => Self::RedisConnections(node, fault(rng)),
            4..=6 => Self::ClientConnections(node, fault(rng)),
            7 => Self::RedisConnectionsReset(node),
            8 => Self::ClientConnectionsReset(node),
            9 => Self::NodeKilled(mortal),
            10 => Self::NodeHangs(node),
            11 => Self::NodeDrained(mortal),
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

    pub(super) async fn fall(&self, stage: &mut Stage) {
        match self {
            Self::RedisConnections(node, fault) => stage.redis_proxies[*node].set(fault.clone()),
            Self::ClientConnections(node, fault) => stage.client_proxies[*node].set(fault.clone()),
            Self::RedisConnectionsReset(node) => stage.redis_proxies[*node].reset(),
            Self::ClientConnectionsReset(node) => stage.client_proxies[*node].reset(),
            Self::NodeKilled(node) => stage.cluster.nodes[*node].kill(),
            Self::NodeHangs(node) => stage.cluster.nodes[*node].signal("STOP"),
            Self::NodeDrained(node) => stage.cluster.nodes[*node].terminate(),
            Self::RedisKilled | Self::RedisRollsBack => stage.redis.kill(),
            Self::RedisHangs => stage.redis.signal("STOP"),
            Self::RedisFlushed => drop(stage.redis.command("FLUSHALL").await),
            Self::SubscribersKilled => drop(stage.redis.command("CLIENT KILL TYPE pubsub").await),
            Self::ScriptsFlushed => drop(stage.redis.command("SCRIPT FLUSH").await),
        }
    }

    pub(super) async fn pass(&self, stage: &mut Stage) {
        match self {
            Self::RedisConnections(node, _) => stage.redis_proxies[*node].heal(),
            Self::ClientConnections(node, _) => stage.client_proxies[*node].heal(),
            Self::NodeKilled(node) => stage.cluster.nodes[*node].restart().await,
            Self::NodeHangs(node) => stage.cluster.nodes[*node].signal("CONT"),
            Self::NodeDrained(node) => {
                // Two seconds of drain, and time to die.
                stage.cluster.nodes[*node].exit(patient(Duration::from_secs(10))).await;
                stage.cluster.nodes[*node].restart().await;
            }
            Self::RedisKilled => stage.redis.start_empty().await,
            Self::RedisHangs => stage.redis.signal("CONT"),
            Self::RedisRollsBack => {
                stage.redis.start_from(&stage.snapshot).await;
                stage.snapshot = stage.redis.snapshot().await;
            }
            Self::RedisConnectionsReset(_)
            | Self::ClientConnectionsReset(_)
            | Self::RedisFlushed
            | Self::SubscribersKilled
            | Self::ScriptsFlushed => {}
        }
    }
}

fn fault(rng: &mut Rng) -> Fault {
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
