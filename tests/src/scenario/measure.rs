//! Measurements that several runs share. Called by the runs.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::progress::print_line;
use crate::history::{Cursor, MemberLog, Published, Verdict, check};
use crate::http;
use crate::load::{heads, percentile};
use crate::member::{Member, Report, settle_within, stop_all};
use crate::wait::patient;

/// The time below which 99 of 100 lie; zero for an empty list.
pub(super) fn p99(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    percentile(&times, 99).unwrap_or_default()
}

/// The time that members have to receive the last messages.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Waits until the members have the last messages, then ends them.
pub(super) async fn settle_and_stop(members: Vec<Member>, published: &[Published]) -> Vec<Report> {
    settle_within(patient(SETTLE_MAX), &members, &heads(published)).await;
    stop_all(members).await
}

/// Checks the logs of the members against the acknowledged publications and prints the findings.
pub(super) fn check_history(published: &[Published], reports: &mut [Report]) -> Verdict {
    let logs: Vec<MemberLog> = reports.iter_mut().map(|report| std::mem::take(&mut report.log)).collect();
    let verdict = check(published, &logs);
    for finding in &verdict.findings {
        print_line(&format!("  {finding}"));
    }
    verdict
}

/// Publishes one message to each room over HTTP, numbered from `first` on; for rooms that are quiet otherwise.
pub(super) async fn publish_once(address: SocketAddr, rooms: &[String], first: u64) -> Vec<Published> {
    let mut published = Vec::new();
    for (room, id) in rooms.iter().zip(first..) {
        let data = json!({"n": id, "node": "http"});
        let reply = http::post(address, &format!("/v1/rooms/{room}"), &data).send().await.expect(200);
        let at = reply["cursor"].as_str().and_then(Cursor::parse).expect("the room has history");
        published.push(Published { room: room.clone(), id, at });
    }
    published
}

/// How many members reconnected, and how many gaps members were told of.
pub(super) fn reconnects_and_gaps(reports: &[Report]) -> (usize, usize) {
    let reconnected = reports.iter().filter(|report| report.nodes.len() > 1).count();
    (reconnected, reports.iter().map(|report| report.gaps.len()).sum())
}
