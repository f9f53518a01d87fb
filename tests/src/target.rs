//! Where clients connect: the nodes themselves, or a load balancer in front of them. Called by the tests that hold for
//! both, and by the members and publishers that reconnect. A target does not know which server is behind an address.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::Cluster;

/// A list of addresses that clients use in turn; cheap to clone.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name printed beside results.
    pub name: &'static str,
    addresses: Arc<[SocketAddr]>,
}

impl Target {
    /// The nodes themselves, each at its own address.
    #[must_use]
    pub fn direct(cluster: &Cluster) -> Self {
        Self::of("direct", cluster.nodes.iter().map(|node| node.listen))
    }

    /// The given addresses.
    #[must_use]
    pub fn of(name: &'static str, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { name, addresses: addresses.into_iter().collect() }
    }

    /// One load balancer.
    #[must_use]
    pub fn balancer(name: &'static str, address: SocketAddr) -> Self {
        Self::of(name, [address])
    }

    /// The address for client number `index`; indices wrap around.
    #[must_use]
    pub fn address(&self, index: usize) -> SocketAddr {
        self.addresses[index % self.addresses.len()]
    }
}
