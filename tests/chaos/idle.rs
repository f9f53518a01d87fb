//! `chaos idle CARRIER COUNT PID LISTEN ADMIN`: opens so many clients that do nothing, each in a room of its own, and prints
//! what a client costs a gateway in resident KiB. Called by `tests/bench p14`, which starts the gateway; it never starts or
//! ends a process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_tests::transport::{Connection, Received};
use fanfare_tests::wait::{eventually_within, pause};
use fanfare_tests::{RoomRequest, Transport, http, prometheus};
use futures_util::{StreamExt, stream};

/// How many connect at a time.
const AT_ONCE: usize = 100;
/// Until the gateway has given back what it needed only while they came.
const SETTLE: Duration = Duration::from_secs(2);
const OPEN_MAX: Duration = Duration::from_secs(120);
/// Polls wait for as long as they may, so that all are parked at once.
const POLL: &str = "wait=55";

/// What is measured.
#[derive(Clone, Copy)]
struct Order {
    transport: Transport,
    count: usize,
    pid: u32,
    listen: SocketAddr,
    admin: SocketAddr,
}

/// Runs it with the arguments after `idle`.
pub(crate) fn main(args: &[String]) -> Result<(), String> {
    let order = parse(args).ok_or("usage: chaos idle ws|sse|stream|poll COUNT PID LISTEN ADMIN")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let kib = runtime.map_err(|error| error.to_string())?.block_on(measure(order))?;
    println!("{kib:.2}");
    Ok(())
}

fn parse(args: &[String]) -> Option<Order> {
    let [transport, count, pid, listen, admin] = args else { return None };
    let transport = match transport.as_str() {
        "ws" => Transport::WebSocket,
        "sse" => Transport::Sse,
        "stream" => Transport::Stream,
        "poll" => Transport::LongPoll,
        _ => return None,
    };
    let (count, pid) = (count.parse().ok()?, pid.parse().ok()?);
    Some(Order { transport, count, pid, listen: listen.parse().ok()?, admin: admin.parse().ok()? })
}

/// The slope over the second half, as `fanfare bench` counts: what a gateway needs once is in the first.
async fn measure(order: Order) -> Result<f64, String> {
    let half = order.count / 2;
    let mut resident = Vec::new();
    let open = Arc::new(AtomicUsize::new(0));
    for part in [0..half, half..order.count] {
        let end = part.end;
        let admitted = stream::iter(part).map(|index| admit(order, index, &open)).buffer_unordered(AT_ONCE);
        admitted.collect::<Vec<()>>().await;
        let parked = order.transport.polls();
        eventually_within(OPEN_MAX, "all are open", async || {
            let count = if parked { waiting(order.admin).await } else { open.load(Ordering::Relaxed) };
            count >= end
        })
        .await;
        pause(SETTLE).await;
        resident.push(resident_kib(order.pid).ok_or("the gateway is gone")?);
    }
    Ok((resident[1] as f64 - resident[0] as f64) / (order.count - half) as f64)
}

/// One client; it listens until this program ends.
async fn admit(order: Order, index: usize, open: &Arc<AtomicUsize>) {
    let request = RoomRequest::of(&[&format!("idle:{index}")]);
    let request = if order.transport.polls() { request.with(POLL) } else { request };
    let mut connection =
        Connection::open(order.listen, order.transport, &request).await.expect("the gateway takes a client");
    // The welcome, then the room; of a poll the room alone.
    loop {
        match connection.next().await {
            Received::Text(text) if text.starts_with(r#"{"type":"joined""#) || order.transport.polls() => break,
            Received::Text(_) | Received::KeepAlive => {}
            Received::Ended(ended) => panic!("client {index}: {ended:?}"),
        }
    }
    open.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        loop {
            if let Received::Ended(ended) = connection.next().await {
                panic!("client {index}: {ended:?}");
            }
        }
    });
}

async fn waiting(admin: SocketAddr) -> usize {
    let text = http::get(admin, "/metrics").send().await.text;
    prometheus::parse(&text).map_or(0, |scrape| scrape.sum("fanfare_polls_waiting") as usize)
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|connection| connection.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
