//! R2: of three nodes one is killed under load and comes back later; its members resume elsewhere. Nothing is lost.
//! `mixed` runs the same with members of every transport.

use std::time::Duration;

use super::{Outcome, Promise, RunSettings, judge, p99, say};
use crate::cluster::Cluster;
use crate::crowd::{Crowd, KEEP_ALL, rooms};
use crate::load::{Load, Running, Timing, heads};
use crate::member::{Member, Report, TransportChoice, settle_within, stop_all};
use crate::rng::Rng;
use crate::target::Target;
use crate::transport::Transport;
use crate::wait::{eventually_within, patient};

/// How long a part of the load may take.
const PART_MAX: Duration = Duration::from_secs(240);
/// Of so many members one is reset at a time.
const RESET_ONE_OF: usize = 10;

/// What differs between the runs.
pub(super) struct Size {
    pub(super) members: usize,
    pub(super) rooms: usize,
    pub(super) total: u64,
    /// See [`Load::pace`].
    pub(super) pace: Duration,
    pub(super) transports: TransportChoice,
    /// How often some of the members are reset besides.
    pub(super) resets: u64,
}

pub(super) async fn run(to: RunSettings) -> Outcome {
    let transports = TransportChoice::Only(Transport::WebSocket);
    let full =
        Size { members: 1_000, rooms: 100, total: 100_000, pace: Duration::from_millis(2), transports, resets: 0 };
    let short = Size { members: 60, rooms: 6, total: 3_000, pace: Duration::from_millis(3), transports, resets: 0 };
    with(to, to.pick(full, short)).await.0
}

/// The run at this size, and what the members saw beside their logs.
pub(super) async fn with(to: RunSettings, size: Size) -> (Outcome, Vec<Report>) {
    let mut rng = Rng::new(to.seed);
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(size.rooms);
    let crowd = Crowd { transports: size.transports, ..Crowd::of(&target, &rooms) };
    let members = crowd.members(size.members, None).await;
    let load = Load { target: target.clone(), publishers: 6, rooms, total: size.total, window: 8, pace: size.pace };
    let running = load.start(Timing::new(size.total));
    tokio::join!(kill_and_restart(&mut cluster, &running, &mut rng, size.total), reset(&members, &running, &size));

    let published = running.finish_within(PART_MAX).await;
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let outages: Vec<Duration> =
        reports.iter().flat_map(|report| &report.outages).map(|outage| outage.joined - outage.ended).collect();
    let verdict = judge(&published, &mut reports);
    let complete = verdict.published as u64;
    let outcome = Outcome::new(Promise::Clean, verdict)
        .at_least("acknowledged", complete as f64, size.total as f64)
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
    say(&format!("  killed node {victim} after {killed_at} publications"));
    reaches(running, back_at).await;
    cluster.nodes[victim].restart().await;
    say(&format!("  started it again after {back_at}"));
}

/// Spread over the load, another part of the members each time.
async fn reset(members: &[Member], running: &Running, size: &Size) {
    for round in 0..size.resets {
        reaches(running, size.total * (round + 1) / (size.resets + 1)).await;
        let part = usize::try_from(round).unwrap_or_default() % RESET_ONE_OF;
        members.iter().skip(part).step_by(RESET_ONE_OF).for_each(Member::reset);
    }
}

async fn reaches(running: &Running, count: u64) {
    eventually_within(patient(PART_MAX), "the load goes on", async || running.acknowledged() >= count).await;
}
