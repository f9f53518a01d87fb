//! Tests of the broker with real Redis servers: the contract, and Redis that fails, forgets or stalls.

mod cluster;
mod faults;
mod members;
mod refusals;
mod security;
mod sentinel;
mod server;
mod sharding;
mod silence;

use super::{RedisBroker, RedisConfig, keys::Partition};
use crate::{
    Broker, Room, Subscriber, SubscriberId,
    contract::{Recorder, TestNode},
};
use server::Server;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// A broker with one subscriber.
struct Gateway {
    broker: Arc<RedisBroker>,
    node: TestNode,
}

impl Gateway {
    async fn connect(config: RedisConfig) -> Self {
        let (broker, mut nodes) = connect(config, 1).await;
        Self { broker, node: nodes.remove(0) }
    }
}

async fn connect(config: RedisConfig, subscribers: u16) -> (Arc<RedisBroker>, Vec<TestNode>) {
    let seen: Vec<Arc<Recorder>> = (0..subscribers).map(|_| Arc::default()).collect();
    let dynamic = seen.iter().map(|s| Arc::clone(s) as Arc<dyn Subscriber>).collect();
    let broker = RedisBroker::connect(config, dynamic).await.unwrap();
    let node = |(n, seen)| TestNode { broker: Arc::clone(&broker) as Arc<dyn Broker>, me: SubscriberId(n), seen };
    let nodes = (0..).zip(seen).map(node).collect();
    (broker, nodes)
}

/// Three nodes; the first of them has a second subscriber.
async fn nodes(config: &RedisConfig) -> Vec<TestNode> {
    let (_, mut nodes) = connect(config.clone(), 2).await;
    for at in [1, 2] {
        nodes.insert(at, connect(config.clone(), 1).await.1.remove(0));
    }
    nodes
}

async fn nodes_over_one_server() -> (Vec<TestNode>, Server) {
    let server = Server::start().await;
    (nodes(&server.config()).await, server)
}

/// Runs every case of the contract, one after the other.
async fn holds_the_contract(config: &RedisConfig) {
    crate::contract_tests!(@one_by_one nodes(config));
}

/// A room whose partition fits.
fn room_where(case: &str, fits: impl Fn(Partition) -> bool) -> Room {
    std::iter::repeat_with(|| crate::contract::room(case)).find(|room| fits(Partition::of(room))).unwrap()
}

/// Waits until something holds.
async fn until<F: Future<Output = bool>>(what: &str, most: Duration, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < most, "waited in vain for {what}");
        sleep_until(Instant::now() + Duration::from_millis(5)).await;
    }
}

mod contract {
    crate::contract_tests!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        super::nodes_over_one_server
    );
}
