//! R3: the run of R2 with members over all five transports, which use another transport at each resume. Apart from the
//! members of the killed node, a tenth of all members is reset at a time throughout the load, so that every ordered pair
//! of transports occurs many times. Nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::killed_node::{self, Size};
use super::outcome::Outcome;
use super::settings::RunSettings;
use crate::member::{Report, TransportChoice};
use crate::transport::Transport;

/// The number of ordered pairs of different transports.
const PAIRS: usize = Transport::ALL.len() * (Transport::ALL.len() - 1);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let transports = TransportChoice::Mixed;
    // A fifth of the members sends a poll for every single message. At the 30 messages a second of R2 in each room, two
    // processors would be busy with polls alone, so each room gets 6 a second.
    let pace = Duration::from_millis(10);
    let full = Size { members: 1_000, rooms: 100, total: 100_000, pace, transports, resets: 30 };
    let small = Size { members: 60, rooms: 6, total: 2_000, pace, transports, resets: 10 };
    let (outcome, reports) = killed_node::with(settings, settings.pick(full, small)).await;
    let (pairs, resumes) = changes(&reports);
    outcome
        .at_least(&format!("of {PAIRS} pairs of transports"), pairs as f64, PAIRS as f64)
        .note(format!("resumes {resumes}"))
        .note(format!("connections {:?}", connections(&reports)))
}

/// How many different pairs of transports were used one after the other, and how many pairs in all.
fn changes(reports: &[Report]) -> (usize, usize) {
    let changes: Vec<(Transport, Transport)> =
        reports.iter().flat_map(|report| report.transports.windows(2).map(|pair| (pair[0], pair[1]))).collect();
    (changes.iter().collect::<BTreeSet<_>>().len(), changes.len())
}

fn connections(reports: &[Report]) -> BTreeMap<&'static str, usize> {
    let mut connections = BTreeMap::new();
    for transport in reports.iter().flat_map(|report| &report.transports) {
        *connections.entry(transport.name()).or_default() += 1;
    }
    connections
}
