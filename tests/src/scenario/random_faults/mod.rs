//! R22: random faults for as long as one likes: three nodes, each behind a fault proxy for its clients and with one before
//! Redis. Members take another transport at each
//! reconnect. Everything acknowledged arrives or is told; the node that is never restarted does not grow. `random_fault` is what can
//! happen, `stage` what it happens to.

mod memory_trend;
mod random_fault;

use std::time::{Duration, Instant};

use super::{Outcome, Promise, RunSettings, judge, noticed, say};
use crate::cluster::Cluster;
use crate::crowd::{Crowd, rooms};
use crate::fault::Proxy;
use crate::load::{Load, Timing, heads};
use crate::member::{TransportChoice, settle_within, stop_all};
use crate::redis::{Redis, Snapshot};
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::{patient, pause};
use memory_trend::MemoryTrend;
use random_fault::RandomFault;

/// As rooms that keep everything, and pings that notice a dead connection within seconds.
const CONFIG: &str = "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 20000, ttl = \"1h\" }\n\
                      [limits]\npublishes_per_second = 0\nping_seconds = 2\n";
const PUBLISHERS: usize = 3;
const PACE: Duration = Duration::from_millis(15);
/// After the last fault: publishers, members and nodes find each other again.
const RECOVERY: Duration = Duration::from_secs(60);
/// A trend needs so long to be more than noise.
const TREND_MIN: Duration = Duration::from_secs(10 * 60);

/// What faults happen to.
struct Stage {
    cluster: Cluster,
    redis: Redis,
    /// Between each node and Redis.
    redis_proxies: Vec<Proxy>,
    /// Between clients and each node.
    client_proxies: Vec<Proxy>,
    snapshot: Snapshot,
    _scratch: Scratch,
}

impl Stage {
    async fn set() -> Self {
        let scratch = Scratch::new();
        let redis = Redis::start(scratch.path()).await;
        let (mut redis_proxies, mut client_proxies) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            redis_proxies.push(Proxy::before(redis.address()).await);
        }
        let addresses = redis_proxies.iter().map(|proxy| format!("redis://{}", proxy.address)).collect();
        let cluster = Cluster::over_addresses(3, addresses).config(CONFIG).start().await;
        for node in &cluster.nodes {
            client_proxies.push(Proxy::before(node.listen).await);
        }
        let snapshot = redis.snapshot().await;
        Self { cluster, redis, redis_proxies, client_proxies, snapshot, _scratch: scratch }
    }
}

pub(super) async fn run(to: RunSettings) -> Outcome {
    let start = Instant::now();
    let mut rng = Rng::new(to.seed);
    let mut stage = Stage::set().await;
    let target = Target::of("fault proxies", stage.client_proxies.iter().map(|proxy| proxy.address));
    let rooms = rooms(12);
    let crowd = Crowd { transports: TransportChoice::Mixed, ..Crowd::of(&target, &rooms) };
    let members = crowd.members(to.pick(60, 24), None).await;
    // More than can be published in that time; it is wound down at the end.
    let per_second = (PUBLISHERS as u128 * 1_000 / PACE.as_millis()) as u64;
    let total = per_second * (to.length.as_secs() + 1);
    let load = Load { target, publishers: PUBLISHERS, rooms, total, window: 8, pace: PACE };
    let running = load.start(Timing::new(total));

    let (mut memory_trend, mut faults) = (MemoryTrend::default(), 0);
    while start.elapsed() < to.length {
        for random_fault in RandomFault::draw(&mut rng) {
            faults += 1;
            let lasts = rng.between(Duration::from_millis(100), Duration::from_secs(5));
            say(&format!("  {:>6.1} s: {random_fault:?} for {lasts:.1?}", start.elapsed().as_secs_f64()));
            random_fault.fall(&mut stage).await;
            pause(lasts).await;
            random_fault.pass(&mut stage).await;
        }
        pause(rng.up_to(Duration::from_secs(3))).await;
        memory_trend.sample(start.elapsed(), stage.cluster.nodes[random_fault::NEVER_RESTARTED].resident_bytes());
    }
    say(&format!("  {:>6.1} s: calm", start.elapsed().as_secs_f64()));
    running.wind_down();
    let published = running.finish_within(RECOVERY).await;
    settle_within(patient(RECOVERY), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let (reconnected, gaps) = noticed(&reports);
    let outcome = Outcome::new(Promise::Honest, judge(&published, &mut reports))
        .note(format!("{faults} faults in {:.0?}", start.elapsed()))
        .note(format!("{reconnected} members reconnected"))
        .note(format!("{gaps} gaps told"));
    if to.length >= TREND_MIN {
        outcome.at_most("memory slope %/h", memory_trend.percent_per_hour(), 1.0)
    } else {
        outcome.note(format!("memory slope {:.1} %/h", memory_trend.percent_per_hour()))
    }
}
