//! The broker over real Redis servers: the contract, and what happens when Redis fails, forgets or stalls.

mod faults;
mod members;
mod server;
mod silence;

use super::{Config, RedisBroker};
use crate::{
    Broker, Subscriber, SubscriberId,
    contract::{Node, Recorder},
};
use server::Server;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// A node of its own.
struct Gateway {
    broker: Arc<RedisBroker>,
    node: Node,
}

impl Gateway {
    async fn connect(config: Config) -> Self {
        let (broker, mut nodes) = connect(config, 1).await;
        Self { broker, node: nodes.remove(0) }
    }
}

async fn connect(config: Config, subscribers: u16) -> (Arc<RedisBroker>, Vec<Node>) {
    let seen: Vec<Arc<Recorder>> = (0..subscribers).map(|_| Arc::default()).collect();
    let dynamic = seen.iter().map(|s| Arc::clone(s) as Arc<dyn Subscriber>).collect();
    let broker = RedisBroker::connect(config, dynamic).await.unwrap();
    let node = |(n, seen)| Node { broker: Arc::clone(&broker) as Arc<dyn Broker>, me: SubscriberId(n), seen };
    let nodes = (0..).zip(seen).map(node).collect();
    (broker, nodes)
}

/// Three nodes over one server; the first of them has a second subscriber.
async fn nodes_over_one_server() -> (Vec<Node>, Server) {
    let server = Server::start().await;
    let (_, mut nodes) = connect(server.config(), 2).await;
    for at in [1, 2] {
        nodes.insert(at, connect(server.config(), 1).await.1.remove(0));
    }
    (nodes, server)
}

/// Waits until something holds, and says how long that took.
async fn until<F: Future<Output = bool>>(what: &str, most: Duration, mut holds: impl FnMut() -> F) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < most, "waited in vain for {what}");
        sleep_until(Instant::now() + Duration::from_millis(5)).await;
    }
    began.elapsed()
}

mod contract {
    crate::contract_tests!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        super::nodes_over_one_server
    );
}
