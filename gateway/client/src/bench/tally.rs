//! The counters of a load run. The board counts, the progress line and the report read.

use super::histogram::Histogram;

/// Complaints that are kept word for word; all are counted.
const COMPLAINTS_MAX: usize = 3;

/// What has happened since the run began.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Members that have joined.
    pub(super) joined: u64,
    /// Members whose connection has ended.
    pub(super) disconnected: u64,
    /// Messages that were handed to a connection.
    pub(super) published: u64,
    /// How late that was by the clock of a fixed rate, in nanoseconds: this tool's own share of the latency.
    pub(super) lateness: Histogram,
    /// Those that were acknowledged, and how long that took, in nanoseconds.
    pub(super) acknowledged: u64,
    pub(super) acknowledgement: Histogram,
    /// Those that were refused.
    pub(super) refused: u64,
    /// What the members of the acknowledged messages' rooms are to receive.
    pub(super) expected: u64,
    /// What they have received, repetitions not counted, and how long after the publish, in nanoseconds.
    pub(super) delivered: u64,
    pub(super) latency: Histogram,
    /// Deliveries that came again.
    pub(super) repeated: u64,
    /// Deliveries that came after a later one.
    pub(super) out_of_order: u64,
    /// What a listening run has found missing of the runs before the last one.
    pub(super) lost_before: u64,
    /// `gap` frames: the gateway says itself that something is missing.
    pub(super) gaps: u64,
    /// Messages of another run in the same rooms.
    pub(super) strange: u64,
    complaints: Vec<String>,
}

impl Tally {
    /// Keeps why something went wrong, once and up to a limit.
    pub(super) fn complain(&mut self, why: String) {
        if self.complaints.len() < COMPLAINTS_MAX && !self.complaints.contains(&why) {
            self.complaints.push(why);
        }
    }

    /// Why something went wrong.
    pub(super) fn complaints(&self) -> &[String] {
        &self.complaints
    }
}
