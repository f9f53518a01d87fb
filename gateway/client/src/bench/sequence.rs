//! What one member has received of its room, by the publisher's own numbers: in order, late, twice, or not at all. The
//! scoreboard asks at every delivery. As long as nothing goes wrong, nothing is allocated.

use std::ops::RangeInclusive;

/// How many holes are remembered; further ones are merged with the last, so that a broken run needs little memory.
const HOLES_MAX: usize = 1024;

/// How a message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// After all earlier messages, or with a hole before it.
    InOrder,
    /// After one that was published later.
    Late,
    /// Again.
    Repeated,
}

/// The numbers that one member has received.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// The last number that arrived, or that need not arrive; 0 for none.
    pub(super) last: u64,
    holes: Vec<RangeInclusive<u64>>,
}

impl Sequence {
    /// Records the message `number`, counted from 1.
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
        /// The model is the set of all numbers that came.
        #[test]
        fn a_sequence_judges_like_the_set_of_all_numbers(numbers in prop::collection::vec(1_u64..40, 0..120)) {
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
    fn a_broken_run_needs_little_memory() {
        let mut sequence = Sequence::default();
        (1..=100_000).for_each(|number| {
            sequence.arrived(number * 2);
        });
        assert_eq!(sequence.holes.len(), HOLES_MAX);
        assert_eq!(sequence.last, 200_000);
    }
}
