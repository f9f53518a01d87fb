//! R4: Redis is killed and comes back empty, and in a second part with an old snapshot. Every member is told of a gap,
//! also in rooms without publications.

use std::time::{Duration, Instant};

use super::measure::{check_history, p99, publish_once};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::history::Verdict;
use crate::load::{Load, heads};
use crate::member::{Report, settle_within, stop_all};
use crate::target::Target;
use crate::wait::{holds_within, patient, pause};

/// The data with which Redis comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Empty,
    OldSnapshot,
}

/// How long after the return of Redis each member was told of a gap; `None` for a member that was not told.
struct ToldAfter {
    busy: Vec<Option<Duration>>,
    quiet: Vec<Option<Duration>>,
}

/// The longest time to wait until all members are told.
const TOLD_MAX: Duration = Duration::from_secs(15);
const TARGET: Duration = Duration::from_secs(2);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (mut verdict, empty) = part(settings, Memory::Empty).await;
    let (other, old) = part(settings, Memory::OldSnapshot).await;
    verdict.add(other);
    let mut outcome = Outcome::new(Promise::EveryLossReported, verdict);
    for (name, times) in
        [("empty, busy", empty.busy), ("empty, quiet", empty.quiet), ("old, busy", old.busy), ("old, quiet", old.quiet)]
    {
        let told: Vec<Duration> = times.iter().flatten().copied().collect();
        let percent = 100.0 * told.len() as f64 / times.len().max(1) as f64;
        outcome = outcome.at_least(&format!("{name}: told %"), percent, 100.0);
        outcome = outcome.time(&format!("{name}: p99"), p99(told), TARGET);
    }
    outcome
}

async fn part(settings: RunSettings, memory: Memory) -> (Verdict, ToldAfter) {
    let (count, room_count, total) = settings.pick((600, 120, 6_000), (24, 8, 600));
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let all = rooms(room_count);
    let (busy, quiet) = all.split_at(room_count / 2);
    let members = members(&target, count, &all).await;
    let mut published = publish_once(cluster.address(0), quiet, total).await;
    let pace = Duration::from_millis(10);
    let load = Load { target, publishers: 3, rooms: busy.to_vec(), total, window: 8, pace };
    let running = load.start();
    running.reaches(total / 20).await;
    let snapshot = cluster.redis().snapshot().await;
    running.reaches(total / 10).await;

    cluster.redis().kill();
    pause(settings.pick(Duration::from_secs(10), Duration::from_secs(1))).await;
    match memory {
        Memory::Empty => cluster.redis().start_empty().await,
        Memory::OldSnapshot => cluster.redis().start_from(&snapshot).await,
    }
    let back = Instant::now();
    holds_within(patient(TOLD_MAX), async || members.iter().all(|member| member.gaps() > 0)).await;
    published.extend(running.finish().await);
    let heads = heads(&published).into_iter().filter(|(room, _)| busy.contains(room)).collect();
    settle_within(patient(TOLD_MAX), &members, &heads).await;

    let mut reports = stop_all(members).await;
    let told = |report: &Report| report.gaps.first().map(|at| at.saturating_duration_since(back));
    let told_in = |rooms: &[String]| {
        let is_there = |report: &&Report| report.log.rooms.keys().any(|room| rooms.contains(room));
        reports.iter().filter(is_there).map(told).collect()
    };
    let told = ToldAfter { busy: told_in(busy), quiet: told_in(quiet) };
    (check_history(&published, &mut reports), told)
}
