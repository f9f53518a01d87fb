//! The cluster to which random faults happen. Called by the run and by `random_fault`.

use crate::cluster::Cluster;
use crate::crowd::KEEP_ALL;
use crate::fault::Proxy;
use crate::redis::{Redis, Snapshot};
use crate::scratch::Scratch;
use crate::target::Target;

/// Three nodes over one Redis, with a fault proxy on every connection.
pub(super) struct FaultyCluster {
    pub(super) cluster: Cluster,
    pub(super) redis: Redis,
    /// A proxy between each node and Redis.
    pub(super) redis_proxies: Vec<Proxy>,
    /// A proxy between clients and each node.
    pub(super) client_proxies: Vec<Proxy>,
    /// The data with which Redis comes back when it is rolled back.
    pub(super) snapshot: Snapshot,
    _scratch: Scratch,
}

impl FaultyCluster {
    pub(super) async fn start() -> Self {
        let scratch = Scratch::new();
        let redis = Redis::start(scratch.path()).await;
        let (mut redis_proxies, mut client_proxies) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            redis_proxies.push(Proxy::before(redis.address()).await);
        }
        let addresses = redis_proxies.iter().map(|proxy| format!("redis://{}", proxy.address)).collect();
        // Pings every 2 s reveal a dead connection soon. `KEEP_ALL` ends in the section of limits.
        let config = format!("{KEEP_ALL}ping_seconds = 2\n");
        let cluster = Cluster::over_addresses(3, addresses).config(&config).start().await;
        for node in &cluster.nodes {
            client_proxies.push(Proxy::before(node.listen).await);
        }
        let snapshot = redis.snapshot().await;
        Self { cluster, redis, redis_proxies, client_proxies, snapshot, _scratch: scratch }
    }

    /// Where clients connect: the proxies of the nodes.
    pub(super) fn target(&self) -> Target {
        Target::of("fault proxies", self.client_proxies.iter().map(|proxy| proxy.address))
    }
}
