//! `chaos idle TRANSPORT COUNT PID LISTEN ADMIN`: opens COUNT idle clients, each in a room of its own, and prints how many
//! KiB of resident memory each of them costs a gateway. Called by `tests/bench p14`, which starts and ends the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_tests::process::resident_bytes;
use fanfare_tests::transport::{Connection, Received};
use fanfare_tests::wait::{eventually_within, pause};
use fanfare_tests::{RoomRequest, Transport, http, prometheus};
use futures_util::{StreamExt, stream};

/// How many clients connect at a time.
const AT_ONCE: usize = 100;
/// The time in which the gateway frees the memory that it needs only while clients connect.
const SETTLE: Duration = Duration::from_secs(2);
const OPEN_MAX: Duration = Duration::from_secs(120);
/// Polls wait as long as they may, so that all of them wait at the same time.
const POLL: &str = "wait=55";

/// What is measured, and at which gateway.
#[derive(Clone, Copy)]
struct Arguments {
    transport: Transport,
    count: usize,
    pid: u32,
    listen: SocketAddr,
    admin: SocketAddr,
}

/// Measures and prints the result; `args` are the arguments after `idle`.
pub(crate) fn main(args: &[String]) -> Result<(), String> {
    let arguments = parse(args).ok_or("usage: chaos idle ws|sse|stream|poll COUNT PID LISTEN ADMIN")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let kib = runtime.map_err(|error| error.to_string())?.block_on(measure(arguments))?;
    println!("{kib:.2}");
    Ok(())
}

fn parse(args: &[String]) -> Option<Arguments> {
    let [transport, count, pid, listen, admin] = args else { return None };
    let transport = match transport.as_str() {
        "ws" => Transport::WebSocket,
        "sse" => Transport::Sse,
        "stream" => Transport::Stream,
        "poll" => Transport::LongPoll,
        _ => return None,
    };
    let (count, pid) = (count.parse().ok()?, pid.parse().ok()?);
    Some(Arguments { transport, count, pid, listen: listen.parse().ok()?, admin: admin.parse().ok()? })
}

/// The memory for each client of the second half, as in `fanfare bench`: the first half includes what a gateway needs
/// only once.
async fn measure(arguments: Arguments) -> Result<f64, String> {
    let half = arguments.count / 2;
    let mut resident = Vec::new();
    let open = Arc::new(AtomicUsize::new(0));
    for part in [0..half, half..arguments.count] {
        let end = part.end;
        let connected = stream::iter(part).map(|index| connect(arguments, index, &open)).buffer_unordered(AT_ONCE);
        connected.collect::<Vec<()>>().await;
        eventually_within(OPEN_MAX, "all clients are connected", async || {
            let polls = arguments.transport.polls();
            let count = if polls { polls_waiting(arguments.admin).await } else { open.load(Ordering::Relaxed) };
            count >= end
        })
        .await;
        pause(SETTLE).await;
        resident.push(resident_bytes(arguments.pid).ok_or("the gateway has ended")?);
    }
    Ok((resident[1] as f64 - resident[0] as f64) / 1_024.0 / (arguments.count - half) as f64)
}

/// Connects a client, which then stays until this program ends.
async fn connect(arguments: Arguments, index: usize, open: &Arc<AtomicUsize>) {
    let request = RoomRequest::of(&[&format!("idle:{index}")]);
    let request = if arguments.transport.polls() { request.with(POLL) } else { request };
    let opened = Connection::open(arguments.listen, arguments.transport, &request).await;
    let mut connection = opened.expect("the gateway accepts a client");
    // `welcome` comes first, then `joined`; a poller makes only `joined`, from its first response.
    loop {
        match connection.next().await {
            Received::Text(text) if text.starts_with(r#"{"type":"joined""#) || arguments.transport.polls() => break,
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

async fn polls_waiting(admin: SocketAddr) -> usize {
    let text = http::get(admin, "/metrics").send().await.text;
    prometheus::parse(&text).map_or(0, |scrape| scrape.sum("fanfare_polls_waiting") as usize)
}
