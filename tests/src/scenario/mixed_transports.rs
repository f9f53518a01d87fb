//! R3: R2 with members over WebSocket, server-sent events, streams, long and short polls, each of which takes another
//! transport at every resume. Beside those of the killed node, which must, a tenth of the members come back at a time all
//! through the load, so that every ordered pair of transports is resumed many times over. Nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::killed_node::{self, Size};
use super::{Outcome, RunSettings};
use crate::member::{Report, TransportChoice};
use crate::transport::Transport;

/// Ordered pairs of different transports.
const PAIRS: usize = Transport::ALL.len() * (Transport::ALL.len() - 1);

pub(super) async fn run(to: RunSettings) -> Outcome {
    let transports = TransportChoice::Mixed;
    // A fifth of the members polls for every single message: each of their rooms gets 6 a second, not 30 as in R2, or two
    // processors would do nothing but answer polls.
    let full =
        Size { members: 1_000, rooms: 100, total: 100_000, pace: Duration::from_millis(10), transports, resets: 30 };
    let short = Size { members: 60, rooms: 6, total: 2_000, pace: Duration::from_millis(10), transports, resets: 10 };
    let (outcome, reports) = killed_node::with(to, to.pick(full, short)).await;
    let (pairs, resumes) = changes(&reports);
    outcome
        .at_least(&format!("of {PAIRS} pairs of transports"), pairs as f64, PAIRS as f64)
        .note(format!("resumes {resumes}"))
        .note(format!("connections {:?}", connections(&reports)))
}

/// How many pairs of transports were taken one after the other, and how often in all.
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
