//! The counters of a load run. The scoreboard counts; the progress line and the report read.

use super::latencies::Latencies;

/// How many different complaints are kept word for word.
const COMPLAINTS_MAX: usize = 3;

/// What a gateway's operator changes when publishes are refused as `rate_limited`.
const RATE_LIMIT_HINT: &str =
    "lower --rate or --in-flight, or raise the gateway's `[limits] publishes_per_second`, where 0 is no limit";

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
