//! R2: of three nodes one is killed under load and comes back later; its members resume elsewhere. Nothing is lost.

use std::time::Duration;

use super::{Outcome, Promise, Setting, judge, p99, say};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::front::Front;
use crate::load::{Load, Timing, heads};
use crate::member::{settle_within, stop_all};
use crate::rng::Rng;
use crate::wait::{eventually_within, patient};

/// How long a part of the load may take.
const PART_MAX: Duration = Duration::from_secs(120);

pub(super) async fn run(to: Setting) -> Outcome {
    let (count, rooms_count, total) = to.pick((1_000, 100, 100_000), (60, 6, 3_000));
    let mut rng = Rng::new(to.seed);
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let front = Front::direct(&cluster);
    let rooms = rooms(rooms_count);
    let members = members(&front, count, &rooms, None).await;
    let pace = to.pick(Duration::from_millis(2), Duration::from_millis(3));
    let load = Load { front, publishers: 6, rooms, total, window: 8, pace };
    let running = load.start(Timing::new(total));

    let victim = rng.index(3);
    let killed_at = total * (15 + rng.below(25)) / 100;
    let back_at = killed_at + total * (15 + rng.below(25)) / 100;
    let reaches = async |count: u64| {
        eventually_within(patient(PART_MAX), "the load goes on", async || running.acknowledged() >= count).await;
    };
    reaches(killed_at).await;
    cluster.nodes[victim].kill();
    say(&format!("  killed node {victim} after {killed_at} publications"));
    reaches(back_at).await;
    cluster.nodes[victim].restart().await;
    say(&format!("  started it again after {back_at}"));

    let published = running.finish_within(PART_MAX).await;
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let outages: Vec<Duration> =
        reports.iter().flat_map(|report| &report.outages).map(|outage| outage.joined - outage.ended).collect();
    let verdict = judge(&published, &mut reports);
    let complete = verdict.published as u64;
    Outcome::new(Promise::Clean, verdict)
        .at_least("acknowledged", complete as f64, total as f64)
        .at_least("members that resumed", outages.len() as f64, 1.0)
        .note(format!("p99 away {:.1?}", p99(outages)))
}
