//! R10: all clients of a node are dropped at the same moment and come back, jittered as clients should. Meanwhile a
//! client that knows nothing of it connects again and again: for it the node must not stop accepting.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::{Outcome, Promise, RunSettings, judge, p99};
use crate::cluster::Cluster;
use crate::crowd::{Crowd, KEEP_ALL, rooms};
use crate::load::{Load, Timing, heads};
use crate::member::{Member, settle_within, stop_all};
use crate::socket::{Incoming, Socket};
use crate::target::Target;
use crate::wait::{eventually_within, patient, ticks};

/// All are back within.
const BACK: Duration = Duration::from_secs(10);
/// The longest that a connect takes, from the SYN to `welcome`.
const STALL: Duration = Duration::from_millis(100);
/// The clients' first wait is random up to this: they are told nothing, so the jitter is theirs.
const BACKOFF: Duration = Duration::from_secs(5);
/// After so long a connect has failed.
const CONNECT_MAX: Duration = Duration::from_secs(20);

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (count, room_count, total) = to.pick((10_000, 1_000, 4_000), (200, 20, 300));
    let cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(room_count);
    let backoff = to.pick(BACKOFF, Duration::from_secs(1));
    let members = Crowd { backoff, ..Crowd::of(&target, &rooms) }.members(count, None).await;
    let load = Load { target, publishers: 2, rooms, total, window: 4, pace: Duration::from_millis(20) };
    let running = load.start(Timing::new(total));

    let (stop, stopped) = watch::channel(false);
    // On a thread of its own: what ten thousand members cost this process is not the node's doing.
    let address = cluster.address(0);
    let prober = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(connect_again_and_again(address, stopped))
    });
    let dropped = Instant::now();
    members.iter().for_each(Member::reset);
    eventually_within(patient(CONNECT_MAX), "all are back", async || {
        members.iter().all(|member| member.connections() > 1)
    })
    .await;
    let published = running.finish().await;
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    stop.send_replace(true);
    let connects = prober.join().expect("the prober lives to the end");
    let mut reports = stop_all(members).await;
    let back = reports.iter().flat_map(|report| &report.outages).map(|outage| outage.joined - dropped).max();
    let storm: Vec<Duration> =
        connects.iter().filter(|(at, _)| *at < dropped + backoff + STALL).map(|(_, took)| *took).collect();
    let resumed = reports.iter().filter(|report| report.outages.len() == 1).count();
    Outcome::new(Promise::Clean, judge(&published, &mut reports))
        .at_least("resumed once", resumed as f64, count as f64)
        .time("all resumed in", back.unwrap_or(CONNECT_MAX), BACK)
        .time(
            &format!("slowest of {} connects meanwhile", storm.len()),
            storm.iter().max().copied().unwrap_or(CONNECT_MAX),
            STALL,
        )
        .note(format!("p99 of them {:.1?}", p99(storm)))
        .note(format!("clients' first wait up to {backoff:?}"))
}

/// When each connect began, and how long it took until `welcome`.
async fn connect_again_and_again(address: SocketAddr, stopped: watch::Receiver<bool>) -> Vec<(Instant, Duration)> {
    let (mut connects, mut tick) = (Vec::new(), ticks(Duration::from_millis(10)));
    while !*stopped.borrow() {
        tick.tick().await;
        let start = Instant::now();
        let connect = async {
            let mut socket = Socket::open(address, "/ws", &[]).await.ok()?;
            matches!(socket.next().await, Incoming::Text(_)).then_some(socket)
        };
        let took = match timeout(CONNECT_MAX, connect).await {
            Ok(Some(_)) => start.elapsed(),
            Ok(None) | Err(_) => CONNECT_MAX,
        };
        connects.push((start, took));
    }
    connects
}
