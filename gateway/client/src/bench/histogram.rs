//! Latencies in logarithmic buckets: what every delivery of a load run is recorded in. Recording is one addition, memory
//! is fixed at 30 KiB, and a percentile is never below the true one and at most 1.6 % above it. It keeps no single values.

/// Buckets per power of two, as a power of two: 64 of them bound the error at 1/64.
const FINE_BITS: u32 = 6;
const FINE: usize = 1 << FINE_BITS;
/// One straight run of buckets for the values below `FINE`, then one per power of two up to 2^63.
const BUCKETS: usize = FINE * (64 - FINE_BITS as usize + 1);

/// Counts of values, in nanoseconds.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds one value.
    pub(super) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// The value that `share` (0 to 1) of all values do not exceed; `None` when there are none.
    pub(super) fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(top(index).min(self.max))
    }

    /// The largest value; `None` when there is none.
    pub(super) fn max(&self) -> Option<u64> {
        (self.total > 0).then_some(self.max)
    }
}

fn bucket(value: u64) -> usize {
    if value < FINE as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - FINE_BITS;
    ((shift as usize + 1) << FINE_BITS) + ((value >> shift) as usize & (FINE - 1))
}

/// The largest value of a bucket.
fn top(index: usize) -> u64 {
    let (run, place) = (index >> FINE_BITS, (index & (FINE - 1)) as u64);
    match run {
        0 => place,
        _ => ((FINE as u64 + place) << (run - 1)) + ((1 << (run - 1)) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_within_one_part_in_64(value: u64) {
            let top = top(bucket(value));
            prop_assert!(value <= top && top - value <= value / 64);
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (None, None));
        (1..=1000).for_each(|value| histogram.record(value * 1000));
        let within = |share, expected: u64| {
            let found = histogram.quantile(share).unwrap();
            assert!(found >= expected && found <= expected + expected / 64, "{share}: {found}");
        };
        within(0.5, 500_000);
        within(0.99, 990_000);
        assert_eq!((histogram.quantile(1.0), histogram.max()), (Some(1_000_000), Some(1_000_000)));
        assert_eq!(histogram.quantile(0.0), Some(1007));
    }
}
