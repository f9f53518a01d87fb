//! R4: Redis is killed and comes back empty, and in a second part with an old snapshot. Every member is told a gap, those
//! of rooms in which nobody publishes too.

use std::time::{Duration, Instant};

use super::{Outcome, Promise, RunSettings, judge, p99, publish_once};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::history::Verdict;
use crate::load::{Load, Timing, heads};
use crate::member::{Report, settle_within, stop_all};
use crate::target::Target;
use crate::wait::{eventually, holds_within, patient, pause};

/// What Redis knows when it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    None,
    Old,
}

/// When members were told, as times since Redis was back; nothing for those that were not.
struct Told {
    busy: Vec<Option<Duration>>,
    quiet: Vec<Option<Duration>>,
}

/// After so long the rest is not told.
const TOLD_MAX: Duration = Duration::from_secs(15);
const TARGET: Duration = Duration::from_secs(2);

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (mut verdict, empty) = part(to, Memory::None).await;
    let (other, old) = part(to, Memory::Old).await;
    verdict.add(other);
    let mut outcome = Outcome::new(Promise::Honest, verdict);
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

async fn part(to: RunSettings, memory: Memory) -> (Verdict, Told) {
    let (count, room_count, total) = to.pick((600, 120, 6_000), (24, 8, 600));
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let all = rooms(room_count);
    let (busy, quiet) = all.split_at(room_count / 2);
    let members = members(&target, count, &all, None).await;
    let mut published = publish_once(cluster.address(0), quiet, total).await;
    let pace = Duration::from_millis(10);
    let load = Load { target, publishers: 3, rooms: busy.to_vec(), total, window: 8, pace };
    let running = load.start(Timing::new(total));
    eventually("the load is under way", async || running.acknowledged() > total / 20).await;
    let snapshot = cluster.redis().snapshot().await;
    eventually("the snapshot is old", async || running.acknowledged() > total / 10).await;

    cluster.redis().kill();
    pause(to.pick(Duration::from_secs(10), Duration::from_secs(1))).await;
    match memory {
        Memory::None => cluster.redis().start_empty().await,
        Memory::Old => cluster.redis().start_from(&snapshot).await,
    }
    let back = Instant::now();
    holds_within(patient(TOLD_MAX), async || members.iter().all(|member| member.gaps() > 0)).await;
    published.extend(running.finish().await);
    let heads = heads(&published).into_iter().filter(|(room, _)| busy.contains(room)).collect();
    settle_within(patient(TOLD_MAX), &members, &heads).await;

    let mut reports = stop_all(members).await;
    let told = |report: &Report| report.gaps.first().map(|at| at.saturating_duration_since(back));
    let of = |rooms: &[String]| {
        let there = |report: &&Report| report.log.rooms.keys().any(|room| rooms.contains(room));
        reports.iter().filter(there).map(told).collect()
    };
    let told = Told { busy: of(busy), quiet: of(quiet) };
    (judge(&published, &mut reports), told)
}
