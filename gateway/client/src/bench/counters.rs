//! The counters and latencies of a load run. The scoreboard counts; the progress line and the report read.

use hdrhistogram::Histogram;

/// How many different complaints are kept word for word.
const COMPLAINTS_MAX: usize = 3;

/// What a gateway's operator changes when publishes are refused as `rate_limited`.
const RATE_LIMIT_HINT: &str =
    "lower --rate or --in-flight, or raise the gateway's `[limits] publishes_per_second`, where 0 is no limit";

/// The longest latency that is told apart: one hour, in nanoseconds. Longer ones count as this.
const NS_MAX: u64 = 3_600_000_000_000;
/// Two significant digits: a percentile is never below the true one and less than 1 % above it. The counts take 37 KiB.
const DIGITS: u8 = 2;

/// What has happened since the run began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Members that have joined.
    pub(super) joined: u64,
    /// Members whose connection has ended.
    pub(super) disconnected: u64,
    /// Messages that were handed to a connection.
    pub(super) published: u64,
    /// How much later than scheduled they were handed over at a fixed rate: this tool's own share of the latency.
    pub(super) lateness: Latencies,
    /// Publishes that were acknowledged, and how long after the publish.
    pub(super) acknowledged: u64,
    pub(super) acknowledgement: Latencies,
    /// Publishes that were refused.
    pub(super) refused: u64,
    /// Deliveries that the acknowledged publishes lead to: one for each member of their rooms.
    pub(super) expected: u64,
    /// Deliveries that have arrived, repetitions not counted, and how long after the publish.
    pub(super) delivered: u64,
    pub(super) latency: Latencies,
    /// Deliveries that arrived again.
    pub(super) repeated: u64,
    /// Deliveries that arrived after a later one.
    pub(super) out_of_order: u64,
    /// Deliveries that a listening run has found missing of the runs before the last one.
    pub(super) lost_before: u64,
    /// `gap` frames: the gateway itself says that messages are missing.
    pub(super) gaps: u64,
    /// Messages of another run in the same rooms.
    pub(super) strange: u64,
    complaints: Vec<String>,
}

impl Counters {
    /// Keeps why something went wrong: each text once, and a few of them.
    pub(super) fn complain(&mut self, why: String) {
        if self.complaints.len() < COMPLAINTS_MAX && !self.complaints.contains(&why) {
            self.complaints.push(why);
        }
    }

    /// Why something went wrong and, for a rate limit, what to change; empty without complaints.
    pub(super) fn explanation(&self) -> String {
        let complaints = self.complaints.join("; ");
        match self.complaints.iter().any(|why| why.starts_with("rate_limited")) {
            true => format!("{complaints}: {RATE_LIMIT_HINT}"),
            false => complaints,
        }
    }
}

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
