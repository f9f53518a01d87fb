//! Where clients connect: the nodes themselves, or a balancer before them. Called by the sentences that hold for
//! both, and by the members and publishers that reconnect; it never knows what stands behind an address.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::Cluster;

/// A list of addresses; cheap to clone.
#[derive(Clone, Debug)]
pub struct Target {
    /// How it is called in verdicts.
    pub name: &'static str,
    addresses: Arc<[SocketAddr]>,
}

impl Target {
    /// The nodes themselves, each at its own address.
    #[must_use]
    pub fn direct(cluster: &Cluster) -> Self {
        Self { name: "direct", addresses: cluster.nodes.iter().map(|node| node.listen).collect() }
    }

    /// Addresses of the caller's, dealt in turn.
    #[must_use]
    pub fn of(name: &'static str, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { name, addresses: addresses.into_iter().collect() }
    }

    /// One balancer.
    #[must_use]
    pub fn balancer(name: &'static str, address: SocketAddr) -> Self {
        Self { name, addresses: Arc::new([address]) }
    }

    /// The address for the client number `index`: addresses are dealt in turn.
    #[must_use]
    pub fn address(&self, index: usize) -> SocketAddr {
        self.addresses[index % self.addresses.len()]
    }
}
