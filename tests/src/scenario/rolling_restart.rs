//! R9: three nodes behind nginx are drained and restarted one after the other, with thousands of clients. Nothing is
//! lost, each client is disconnected for a short time only, and the reconnects are spread evenly over the drain.

use std::time::{Duration, Instant};

use super::measure::{check_history, p99, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::{RunSettings, Scale};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::Load;
use crate::member::{Outage, Report};
use crate::nginx::{Nginx, Version};
use crate::wait::{patient, pause};

const TARGET: Duration = Duration::from_millis(1_500);
/// An outage that is longer than this is printed.
const SLOW: Duration = Duration::from_secs(5);
/// The target for the reconnects in the busiest second of a drain, divided by their mean over its seconds.
const PEAK_MAX: f64 = 1.3;
/// The time that a node may take beyond the window of its drain.
const SLACK: Duration = Duration::from_secs(2);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, room_count, window_s) = settings.pick((6_000, 300, 20), (60, 6, 2));
    let total = settings.pick(20_000, 1_000);
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).drain(window_s).start().await;
    let nginx = Nginx::before(&cluster, Version::New).await;
    let target = nginx.target();
    let rooms = rooms(room_count);
    let members = members(&target, count, &rooms).await;
    let pace = settings.pick(Duration::from_millis(20), Duration::from_millis(10));
    let load = Load { target, publishers: 4, rooms, total, window: 4, pace };
    let running = load.start();
    running.reaches(50).await;

    let window = Duration::from_secs(u64::from(window_s));
    let mut drains = Vec::new();
    for node in &mut cluster.nodes {
        let begun = Instant::now();
        node.terminate();
        let status = node.exit(patient(window + SLACK)).await;
        assert_eq!(status.code(), Some(0), "{}", node.log());
        drains.push((begun, Instant::now()));
        print_line(&format!("  node {} has ended after {:.1?}", node.name, begun.elapsed()));
        node.restart().await;
        // An orchestrator waits until the node is ready, and a little longer.
        pause(settings.pick(Duration::from_secs(2), Duration::from_millis(500))).await;
    }
    running.wind_down();
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    let outages: Vec<Outage> = reports.iter().flat_map(|report| &report.outages).copied().collect();
    print_slow_outages(&reports);
    let refused = nginx.access_log().lines().filter(|line| !line.contains("\"status\":101")).count();
    let peaks: Vec<f64> = drains.iter().map(|drain| peak_over_mean(*drain, &outages)).collect();
    let verdict = check_history(&published, &mut reports);
    let outcome = Outcome::new(Promise::NoLoss, verdict)
        .at_least("outages", outages.len() as f64, count as f64)
        .time("p99 away", p99(outages.iter().map(Outage::length)), TARGET)
        .note(format!("without a hint {}", cut_off(&reports)))
        .note(format!("refused by nginx {refused}"));
    match settings.scale {
        Scale::Full => outcome.at_most("peak/mean reconnects", peaks.into_iter().fold(0.0, f64::max), PEAK_MAX),
        // A few clients say nothing about rates.
        Scale::Small => outcome,
    }
}

fn print_slow_outages(reports: &[Report]) {
    for report in reports {
        for outage in report.outages.iter().filter(|outage| outage.length() > SLOW) {
            let (name, nodes) = (&report.log.name, &report.nodes);
            let (until, then) = (outage.welcome - outage.ended, outage.joined - outage.welcome);
            print_line(&format!("  {name} on {nodes:?}: welcome after {until:.1?}, joined {then:.1?} later"));
        }
    }
}

/// The number of connections that ended without the close code of a drain.
fn cut_off(reports: &[Report]) -> usize {
    reports.iter().flat_map(|report| &report.closes).filter(|code| **code != Some(1012)).count()
}

/// The reconnects in the busiest second of a drain, divided by their mean from the first reconnect to the last.
fn peak_over_mean((begun, ended): (Instant, Instant), outages: &[Outage]) -> f64 {
    let back: Vec<Instant> =
        outages.iter().map(|outage| outage.welcome).filter(|at| (begun..ended).contains(at)).collect();
    let (Some(first), Some(last)) = (back.iter().min(), back.iter().max()) else { return 0.0 };
    let mut seconds = [0_u32; 64];
    for at in &back {
        let second = usize::try_from(at.duration_since(*first).as_secs()).unwrap_or(usize::MAX);
        seconds[second.min(63)] += 1;
    }
    let used: Vec<&u32> = seconds.iter().take_while(|count| **count > 0).collect();
    print_line(&format!("  reconnects in each second: {used:?}"));
    let span = last.duration_since(*first).as_secs_f64().max(1.0);
    let peak = seconds.iter().max().copied().unwrap_or_default();
    f64::from(peak) / (back.len() as f64 / span)
}
