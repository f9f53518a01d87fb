//! Latencies of a load run: recorded per delivery, read as percentiles in the report.

use hdrhistogram::Histogram;

/// The longest latency that is told apart: one hour, in nanoseconds. Longer ones count as this.
const NS_MAX: u64 = 3_600_000_000_000;
/// Two significant digits: a percentile is never below the true one and less than 1 % above it. The counts take 37 KiB.
const DIGITS: u8 = 2;

/// How often each latency occurred, in nanoseconds.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, NS_MAX, DIGITS).expect("the bounds are valid"))
    }
}

impl Latencies {
    /// Adds one latency.
    pub(super) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// The latency in milliseconds that `share` (0 to 1) of all do not exceed; `None` when there are none.
    pub(super) fn ms(&self, share: f64) -> Option<f64> {
        // Whole microseconds: the rest is below the histogram's precision.
        (!self.0.is_empty()).then(|| (self.0.value_at_quantile(share) / 1000) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_one_percent_too_high() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.ms(0.5), None);
        (1..=1000).for_each(|ms| latencies.record(ms * 1_000_000));
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latencies.ms(share).unwrap();
            assert!((expected..expected * 1.01).contains(&found), "{share}: {found}");
        }
        latencies.record(u64::MAX);
        assert!(latencies.ms(1.0).unwrap() >= 3_600_000.0);
    }
}
