//! R22: random faults for any length of time, to three nodes with a fault proxy on every connection. Members use another
//! transport at each reconnect. Every acknowledged message arrives or is covered by a gap, and the node that is never
//! restarted does not grow.

mod faulty_cluster;
mod memory_trend;
mod random_fault;

use std::time::{Duration, Instant};

use self::faulty_cluster::FaultyCluster;
use self::memory_trend::MemoryTrend;
use self::random_fault::{NEVER_RESTARTED, RandomFault};
use super::measure::{check_history, reconnects_and_gaps};
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::RunSettings;
use crate::crowd::{Crowd, rooms};
use crate::load::{Load, heads};
use crate::member::{TransportChoice, settle_within, stop_all};
use crate::rng::Rng;
use crate::wait::{patient, pause};

const PUBLISHERS: usize = 3;
const PACE: Duration = Duration::from_millis(15);
/// The time that publishers, members and nodes have to reconnect after the last fault.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// In a shorter run, the trend of the memory is mostly noise.
const TREND_MIN: Duration = Duration::from_secs(10 * 60);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let start = Instant::now();
    let mut rng = Rng::new(settings.seed);
    let mut faulty = FaultyCluster::start().await;
    let target = faulty.target();
    let rooms = rooms(12);
    let crowd = Crowd { transports: TransportChoice::Mixed, ..Crowd::of(&target, &rooms) };
    let members = crowd.members(settings.pick(60, 24)).await;
    // More than can be published in the time of the run; the load winds down at the end.
    let per_second = (PUBLISHERS as u128 * 1_000 / PACE.as_millis()) as u64;
    let total = per_second * (settings.length.as_secs() + 1);
    let load = Load { target, publishers: PUBLISHERS, rooms, total, window: 8, pace: PACE };
    let running = load.start();

    let (mut trend, mut faults) = (MemoryTrend::default(), 0);
    while start.elapsed() < settings.length {
        for fault in RandomFault::draw(&mut rng) {
            faults += 1;
            let lasts = rng.between(Duration::from_millis(100), Duration::from_secs(5));
            print_line(&format!("  {:>6.1} s: {fault:?} for {lasts:.1?}", start.elapsed().as_secs_f64()));
            fault.begin(&mut faulty).await;
            pause(lasts).await;
            fault.end(&mut faulty).await;
        }
        pause(rng.up_to(Duration::from_secs(3))).await;
        trend.sample(start.elapsed(), faulty.cluster.nodes[NEVER_RESTARTED].resident_bytes());
    }
    print_line(&format!("  {:>6.1} s: no more faults", start.elapsed().as_secs_f64()));
    running.wind_down();
    let published = running.finish_within(RECOVERY_MAX).await;
    settle_within(patient(RECOVERY_MAX), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let (reconnected, gaps) = reconnects_and_gaps(&reports);
    let outcome = Outcome::new(Promise::EveryLossReported, check_history(&published, &mut reports))
        .note(format!("{faults} faults in {:.0?}", start.elapsed()))
        .note(format!("{reconnected} members reconnected"))
        .note(format!("{gaps} gaps told"));
    if settings.length >= TREND_MIN {
        outcome.at_most("memory trend %/h", trend.percent_per_hour(), 1.0)
    } else {
        outcome.note(format!("memory trend {:.1} %/h", trend.percent_per_hour()))
    }
}
