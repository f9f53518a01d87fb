//! Which carrier a member takes for each of its connections. Called by `life`; pure, so that a run can be repeated.

use crate::transport::Carrier;

/// What carries a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriers {
    /// The same one for all its life.
    Only(Carrier),
    /// Another one after each reconnect. Members differ in where they begin and in which order they change, so that among
    /// twenty every ordered pair of different carriers is taken.
    Mixed,
}

impl Carriers {
    /// The carrier of a member's connection, both counted from 0.
    #[must_use]
    pub fn of(self, member: usize, connection: usize) -> Carrier {
        const COUNT: usize = Carrier::ALL.len();
        match self {
            Self::Only(carrier) => carrier,
            Self::Mixed => {
                let step = 1 + member / COUNT % (COUNT - 1);
                Carrier::ALL[(member + connection * step) % COUNT]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Carriers;
    use crate::transport::Carrier;
    use std::collections::BTreeSet;

    #[test]
    fn twenty_mixed_members_take_every_pair_of_different_carriers() {
        let pairs: BTreeSet<(Carrier, Carrier)> =
            (0..20).map(|member| (Carriers::Mixed.of(member, 0), Carriers::Mixed.of(member, 1))).collect();
        assert_eq!(pairs.len(), 20);
        assert!(pairs.iter().all(|(one, next)| one != next), "{pairs:?}");
        assert_eq!(Carriers::Only(Carrier::Sse).of(3, 9), Carrier::Sse);
    }
}
