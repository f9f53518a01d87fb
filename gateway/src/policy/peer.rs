//! The client's address, through trusted proxies, and how many connections it has. Called for every request, and for every
//! connection that lasts.

use ipnet::IpNet;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

/// Which proxies are trusted to name the client's address, and how many connections an address may have.
#[derive(Debug, Clone)]
pub(crate) struct PeerPolicy {
    trusted: Vec<Network>,
    /// 0: no limit.
    per_ip: u32,
    connections: Connections,
}

/// Connections by [`site`].
type Connections = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// Counts one connection of an address for as long as it lives.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    site: IpAddr,
    connections: Connections,
}

impl PeerPolicy {
    /// Believes the `X-Forwarded-For` of these networks; allows `per_ip` connections per address (0: no limit).
    pub(crate) fn new(trusted: Vec<Network>, per_ip: u32) -> Self {
        Self { trusted, per_ip, connections: Arc::default() }
    }

    /// The client's address. Each trusted hop, from the right, is believed about the one before it; the first that is not
    /// trusted is the client. Empty elements of the list do not count (RFC 9110 section 5.6.1).
    pub(crate) fn client(&self, peer: IpAddr, forwarded_for: Option<&str>) -> IpAddr {
        let hops = forwarded_for.unwrap_or_default().rsplit(',').map(str::trim).filter(|hop| !hop.is_empty());
        let mut client = peer.to_canonical();
        for hop in hops.map(hop_address) {
            let (true, Some(hop)) = (self.trusted.iter().any(|net| net.contains(client)), hop) else { break };
            client = hop.to_canonical();
        }
        client
    }

    /// Counts one more connection; `Ok(None)` without a limit. An error: the address has as many as it may.
    pub(crate) fn permit(&self, address: IpAddr) -> Result<Option<ConnectionPermit>, ()> {
        if self.per_ip == 0 {
            return Ok(None);
        }
        let site = site(address);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = connections.entry(site).or_default();
        if *taken >= self.per_ip {
            return Err(());
        }
        *taken += 1;
        Ok(Some(ConnectionPermit { site, connections: Arc::clone(&self.connections) }))
    }
}

/// What shares one limit of connections: an IPv4 address, or the 64 bits of an IPv6 address that its network gives to one
/// site (RFC 6177). A host may take any address below them.
fn site(address: IpAddr) -> IpAddr {
    const HOST_BITS: u128 = u64::MAX as u128;
    match address {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !HOST_BITS).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The address of a hop: `1.2.3.4`, or as some proxies write it `1.2.3.4:5678`, `[2001:db8::1]:5678`, or in quotes.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim_matches('"');
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    hop.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip())).or_else(bare)
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = connections.get_mut(&self.site) {
            *taken -= 1;
            if *taken == 0 {
                connections.remove(&self.site);
            }
        }
    }
}

/// A range of addresses in CIDR notation; one address alone is a range of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(IpNet);

impl Network {
    /// Whether an address lies in the range; an IPv4 address mapped into IPv6 counts as the IPv4 one.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<IpAddr>().ok()?.into()));
        let range = range.ok_or_else(|| format!("must be a range such as 10.0.0.0/8 or fd00::/8, not {text:?}"))?;
        if range.trunc() != range {
            return Err(format!("has bits set beyond the first {}: {text:?}", range.prefix_len()));
        }
        Ok(Self(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let policy = PeerPolicy::new(vec!["10.0.0.0/8".parse().unwrap()], 0);
        let client = |peer: &str, header: Option<&str>| policy.client(peer.parse().unwrap(), header).to_string();
        assert_eq!(client("10.0.0.1", Some("1.1.1.1, 2.2.2.2, 10.0.0.9")), "2.2.2.2");
        assert_eq!(client("3.3.3.3", Some("1.1.1.1")), "3.3.3.3");
        assert_eq!(client("10.0.0.1", None), "10.0.0.1");
        assert_eq!(client("10.0.0.1", Some("garbage")), "10.0.0.1");
        for (hops, first) in [
            ("1.1.1.1:5678", "1.1.1.1"),
            ("1.1.1.1:5678, 10.0.0.9:80", "1.1.1.1"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("\"[2001:db8::1]:5678\"", "2001:db8::1"),
            ("1.1.1.1:x", "10.0.0.1"),
            // A recipient ignores empty elements (RFC 9110 section 5.6.1).
            ("1.1.1.1,", "1.1.1.1"),
            (", 1.1.1.1, ,10.0.0.9,\t", "1.1.1.1"),
            (", ", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", Some(hops)), first, "{hops}");
        }
        assert_eq!(client("::ffff:10.0.0.1", Some("::1")), "::1");
    }

    #[test]
    fn an_ended_connection_no_longer_counts() {
        let policy = PeerPolicy::new(vec![], 1);
        let address = "1.1.1.1".parse().unwrap();
        let permit = policy.permit(address).unwrap();
        assert!(policy.permit(address).is_err());
        drop(permit);
        assert!(policy.permit(address).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_one_limit() {
        let policy = PeerPolicy::new(vec![], 1);
        let permit = |address: &str| policy.permit(address.parse().unwrap());
        let first = permit("2001:db8:1:2::1").unwrap();
        assert!(permit("2001:db8:1:2:ffff::9").is_err(), "the same network");
        let _other = permit("2001:db8:1:3::1").unwrap();
        let _v4 = (permit("192.0.2.1").unwrap(), permit("192.0.2.2").unwrap());
        drop(first);
        permit("2001:db8:1:2:ffff::9").unwrap();
    }
}
