//! Who is at the other end: the client's address, through proxies that are trusted, and how many connections it has.

use std::{
    collections::HashMap,
    net::IpAddr,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

/// Whose word about the client's address is believed, and how many connections one address may have.
#[derive(Debug, Clone)]
pub(crate) struct PeerPolicy {
    trusted: Vec<Network>,
    /// 0: no limit.
    per_ip: u32,
    seats: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// A connection's place among those of its address; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    address: IpAddr,
    seats: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl PeerPolicy {
    /// Believes `X-Forwarded-For` of these networks; `per_ip` connections per address (0: no limit).
    pub(crate) fn new(trusted: Vec<Network>, per_ip: u32) -> Self {
        Self { trusted, per_ip, seats: Arc::default() }
    }

    /// The client's address: the right-most hop that is not a trusted proxy, as long as trusted ones say so.
    pub(crate) fn client(&self, peer: IpAddr, forwarded_for: Option<&str>) -> IpAddr {
        let hops = forwarded_for.unwrap_or_default().rsplit(',').map(|hop| hop.trim().parse::<IpAddr>());
        let mut client = peer.to_canonical();
        for hop in hops {
            let (true, Ok(hop)) = (self.trusted.iter().any(|net| net.contains(client)), hop) else { break };
            client = hop.to_canonical();
        }
        client
    }

    /// A place for one more connection; `Ok(None)` where there is no limit, `Err` at the limit.
    pub(crate) fn seat(&self, address: IpAddr) -> Result<Option<ConnectionPermit>, ()> {
        if self.per_ip == 0 {
            return Ok(None);
        }
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seats.entry(address).or_default();
        if *taken >= self.per_ip {
            return Err(());
        }
        *taken += 1;
        Ok(Some(ConnectionPermit { address, seats: Arc::clone(&self.seats) }))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = seats.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.address);
            }
        }
    }
}

/// A range of addresses in CIDR notation; one address alone is a range of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    first: IpAddr,
    bits: u32,
}

impl Network {
    /// Whether an address lies in the range; an IPv4 address mapped into IPv6 counts as the IPv4 one.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.bits) == masked(self.first, self.bits)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a range such as 10.0.0.0/8 or fd00::/8, not {text:?}");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let first: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse).map_err(|_| wrong())?;
        if bits > all {
            return Err(wrong());
        }
        if masked(first, bits) != masked(first, all) {
            return Err(format!("has bits set beyond the first {bits}: {text:?}"));
        }
        Ok(Self { first, bits })
    }
}

/// The address's first bits, as a number that compares within one family.
fn masked(address: IpAddr, bits: u32) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0)),
        IpAddr::V6(v6) => v6.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0),
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
        assert_eq!(client("::ffff:10.0.0.1", Some("::1")), "::1");
    }

    #[test]
    fn a_seat_is_free_again_when_its_connection_is_gone() {
        let policy = PeerPolicy::new(vec![], 1);
        let address = "1.1.1.1".parse().unwrap();
        let seat = policy.seat(address).unwrap();
        assert!(policy.seat(address).is_err());
        drop(seat);
        assert!(policy.seat(address).is_ok());
    }
}
