//! R10: all clients of a node are dropped at the same moment and reconnect after a random wait, as clients should.
//! Meanwhile another client connects again and again, and must not have to wait.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::measure::{check_history, p99, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::{Crowd, KEEP_ALL, rooms};
use crate::load::Load;
use crate::member::Member;
use crate::target::Target;
use crate::transport::websocket::{Incoming, WebSocket};
use crate::wait::{eventually_within, patient, ticks};

/// The target for the time in which all clients are back.
const BACK: Duration = Duration::from_secs(10);
/// The target for the slowest connect, from the SYN to `welcome`.
const CONNECT: Duration = Duration::from_millis(100);
/// The clients' first wait is random up to this time. A node that drops its clients gives no hints, so the clients must
/// spread their reconnects themselves.
const BACKOFF: Duration = Duration::from_secs(5);
/// A connect that takes longer than this has failed.
const CONNECT_MAX: Duration = Duration::from_secs(20);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, room_count, total) = settings.pick((10_000, 1_000, 4_000), (200, 20, 300));
    let cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(room_count);
    let backoff = settings.pick(BACKOFF, Duration::from_secs(1));
    let members = Crowd { backoff, ..Crowd::of(&target, &rooms) }.members(count).await;
    let load = Load { target, publishers: 2, rooms, total, window: 4, pace: Duration::from_millis(20) };
    let running = load.start();

    let (stop, stopped) = watch::channel(false);
    // On a thread of its own, so that the work of ten thousand members in this process does not slow its connects.
    let address = cluster.address(0);
    let prober = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(connect_again_and_again(address, stopped))
    });
    let dropped = Instant::now();
    members.iter().for_each(Member::reset);
    eventually_within(patient(CONNECT_MAX), "all clients are back", async || {
        members.iter().all(|member| member.connections() > 1)
    })
    .await;
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    stop.send_replace(true);
    let connects = prober.join().expect("the prober runs to its end");
    let back = reports.iter().flat_map(|report| &report.outages).map(|outage| outage.joined - dropped).max();
    let meanwhile: Vec<Duration> =
        connects.iter().filter(|(at, _)| *at < dropped + backoff + CONNECT).map(|(_, took)| *took).collect();
    let slowest = meanwhile.iter().max().copied().unwrap_or(CONNECT_MAX);
    let resumed = reports.iter().filter(|report| report.outages.len() == 1).count();
    Outcome::new(Promise::NoLoss, check_history(&published, &mut reports))
        .at_least("resumed once", resumed as f64, count as f64)
        .time("all resumed in", back.unwrap_or(CONNECT_MAX), BACK)
        .time(&format!("slowest of {} connects meanwhile", meanwhile.len()), slowest, CONNECT)
        .note(format!("p99 of them {:.1?}", p99(meanwhile)))
        .note(format!("clients' first wait up to {backoff:?}"))
}

/// The start of each connect, and how long it took until `welcome`.
async fn connect_again_and_again(address: SocketAddr, stopped: watch::Receiver<bool>) -> Vec<(Instant, Duration)> {
    let (mut connects, mut tick) = (Vec::new(), ticks(Duration::from_millis(10)));
    while !*stopped.borrow() {
        tick.tick().await;
        let start = Instant::now();
        let connect = async {
            let mut socket = WebSocket::open(address, "/ws", &[]).await.ok()?;
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
