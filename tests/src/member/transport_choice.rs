//! Which transport a member uses for each of its connections. Called by `task`; pure, so that a run can be repeated.

use crate::transport::Transport;

/// How a member chooses its transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportChoice {
    /// The same transport for every connection.
    Only(Transport),
    /// Another transport after each reconnect. Members differ in their first transport and in the order of the others, so
    /// that twenty of them use every ordered pair of different transports.
    Mixed,
}

impl TransportChoice {
    /// The transport of a member's connection; both are counted from 0.
    #[must_use]
    pub fn of(self, member: usize, connection: usize) -> Transport {
        const COUNT: usize = Transport::ALL.len();
        match self {
            Self::Only(transport) => transport,
            Self::Mixed => {
                let step = 1 + member / COUNT % (COUNT - 1);
                Transport::ALL[(member + connection * step) % COUNT]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TransportChoice;
    use crate::transport::Transport;
    use std::collections::BTreeSet;

    #[test]
    fn twenty_mixed_members_use_every_pair_of_different_transports() {
        let pairs: BTreeSet<(Transport, Transport)> = (0..20)
            .map(|member| (TransportChoice::Mixed.of(member, 0), TransportChoice::Mixed.of(member, 1)))
            .collect();
        assert_eq!(pairs.len(), 20);
        assert!(pairs.iter().all(|(one, next)| one != next), "{pairs:?}");
        assert_eq!(TransportChoice::Only(Transport::Sse).of(3, 9), Transport::Sse);
    }
}
