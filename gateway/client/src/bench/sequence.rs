//! What one member has had of its room, by the publisher's own numbers: in order, late, twice, or not at all. The board asks
//! it at every delivery. It allocates nothing as long as nothing goes wrong.

use std::ops::RangeInclusive;

/// The holes that are remembered; more of them are merged with the last one, so that a broken run stays small.
const HOLES_MAX: usize = 1024;

/// How a message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// After everything before it, or after a hole.
    InOrder,
    /// After one that was published later.
    Late,
    /// Again.
    Repeated,
}

/// One member's place.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    last: u64,
    holes: Vec<RangeInclusive<u64>>,
}

impl Sequence {
    /// Takes note of number `number`, from 1.
    pub(super) fn arrived(&mut self, number: u64) -> Arrival {
        if number > self.last {
            if number > self.last + 1 {
                self.hole(self.last + 1..=number - 1);
            }
            self.last = number;
            return Arrival::InOrder;
        }
        let Some(index) = self.holes.iter().position(|hole| hole.contains(&number)) else { return Arrival::Repeated };
        let hole = self.holes.swap_remove(index);
        for part in [*hole.start()..=number - 1, number + 1..=*hole.end()] {
            if !part.is_empty() {
                self.hole(part);
            }
        }
        Arrival::Late
    }

    /// Begins in the middle: `number` is to be the next one.
    pub(super) fn begin_at(&mut self, number: u64) {
        self.last = number.saturating_sub(1);
    }

    /// The last number that arrived; 0 for none.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// What is missing of the first `published` messages.
    pub(super) fn missing(&self, published: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
        let tail = self.last + 1..=published;
        self.holes.iter().cloned().chain((!tail.is_empty()).then_some(tail))
    }

    fn hole(&mut self, hole: RangeInclusive<u64>) {
        let is_full = self.holes.len() == HOLES_MAX;
        match self.holes.last_mut().filter(|_| is_full) {
            Some(last) => *last = *last.start().min(hole.start())..=*last.end().max(hole.end()),
            None => self.holes.push(hole),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against the plain model: the set of everything that came.
        #[test]
        fn it_judges_like_a_set_of_everything(numbers in prop::collection::vec(1_u64..40, 0..120)) {
            let (mut sequence, mut seen) = (Sequence::default(), BTreeSet::new());
            for number in numbers {
                let expected = match seen.last() {
                    _ if seen.contains(&number) => Arrival::Repeated,
                    Some(&last) if number < last => Arrival::Late,
                    _ => Arrival::InOrder,
                };
                prop_assert_eq!(sequence.arrived(number), expected);
                seen.insert(number);
            }
            let missing: BTreeSet<u64> = sequence.missing(45).flatten().collect();
            prop_assert_eq!(missing, (1..=45).filter(|number| !seen.contains(number)).collect());
        }
    }

    #[test]
    fn a_broken_run_stays_small() {
        let mut sequence = Sequence::default();
        (1..=100_000).for_each(|number| {
            sequence.arrived(number * 2);
        });
        assert_eq!(sequence.holes.len(), HOLES_MAX);
        assert_eq!(sequence.last(), 200_000);
    }
}
