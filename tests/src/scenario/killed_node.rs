//! R2: one of three nodes is killed under load and comes back later; its members resume elsewhere. Nothing is lost.
//! `mixed_transports` is the same run with members over every transport.

use std::time::Duration;

use super::measure::{check_history, p99, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::{Crowd, KEEP_ALL, rooms};
use crate::load::{Load, Running};
use crate::member::{Member, Outage, Report, TransportChoice};
use crate::rng::Rng;
use crate::target::Target;
use crate::transport::Transport;

/// The longest time that a part of the load may take.
const PART_MAX: Duration = Duration::from_secs(240);
/// Each round of resets takes one member of this many.
const RESET_ONE_OF: usize = 10;

/// The size of a run.
pub(super) struct Size {
    pub(super) members: usize,
    pub(super) rooms: usize,
    pub(super) total: u64,
    /// See [`Load::pace`].
    pub(super) pace: Duration,
    pub(super) transports: TransportChoice,
    /// The number of rounds in which some of the members are reset.
    pub(super) resets: u64,
}

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let transports = TransportChoice::Only(Transport::WebSocket);
    let pace = Duration::from_millis(2);
    let full = Size { members: 1_000, rooms: 100, total: 100_000, pace, transports, resets: 0 };
    let pace = Duration::from_millis(3);
    let small = Size { members: 60, rooms: 6, total: 3_000, pace, transports, resets: 0 };
    with(settings, settings.pick(full, small)).await.0
}

/// The run at this size; also returns the reports of the members, without their logs.
pub(super) async fn with(settings: RunSettings, size: Size) -> (Outcome, Vec<Report>) {
    let mut rng = Rng::new(settings.seed);
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(size.rooms);
    let crowd = Crowd { transports: size.transports, ..Crowd::of(&target, &rooms) };
    let members = crowd.members(size.members).await;
    let load = Load { target: target.clone(), publishers: 6, rooms, total: size.total, window: 8, pace: size.pace };
    let running = load.start();
    tokio::join!(kill_and_restart(&mut cluster, &running, &mut rng, size.total), reset(&members, &running, &size));

    let published = running.finish_within(PART_MAX).await;
    let mut reports = settle_and_stop(members, &published).await;
    let outages: Vec<Duration> = reports.iter().flat_map(|report| &report.outages).map(Outage::length).collect();
    let verdict = check_history(&published, &mut reports);
    let acknowledged = verdict.published as f64;
    let outcome = Outcome::new(Promise::NoLoss, verdict)
        .at_least("acknowledged", acknowledged, size.total as f64)
        .at_least("members that resumed", outages.len() as f64, 1.0)
        .note(format!("p99 away {:.1?}", p99(outages)));
    (outcome, reports)
}

async fn kill_and_restart(cluster: &mut Cluster, running: &Running, rng: &mut Rng, total: u64) {
    let victim = rng.index(3);
    let killed_at = total * (15 + rng.below(25)) / 100;
    let back_at = killed_at + total * (15 + rng.below(25)) / 100;
    reaches(running, killed_at).await;
    cluster.nodes[victim].kill();
    print_line(&format!("  killed node {victim} after {killed_at} publications"));
    reaches(running, back_at).await;
    cluster.nodes[victim].restart().await;
    print_line(&format!("  started it again after {back_at}"));
}

/// Resets members in rounds spread over the load, other members in each round.
async fn reset(members: &[Member], running: &Running, size: &Size) {
    for round in 0..size.resets {
        reaches(running, size.total * (round + 1) / (size.resets + 1)).await;
        let part = usize::try_from(round).unwrap_or_default() % RESET_ONE_OF;
        members.iter().skip(part).step_by(RESET_ONE_OF).for_each(Member::reset);
    }
}

async fn reaches(running: &Running, count: u64) {
    running.reaches(count).await;
}
