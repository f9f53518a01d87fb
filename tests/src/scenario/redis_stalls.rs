//! R6: Redis hangs with its connections open. Clients that only listen do not notice it: both kinds of ping are answered
//! as usual, the memory of the nodes stays bounded, and afterwards no message is missing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::measure::{check_history, p99, reconnects_and_gaps, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::{Cluster, Node};
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::Load;
use crate::target::Target;
use crate::transport::websocket::{Incoming, WebSocket};
use crate::wait::{ticks, within};

/// The interval between two pings of a client.
const EVERY: Duration = Duration::from_millis(50);
const TARGET: Duration = Duration::from_millis(50);
/// How many MiB a node may grow by: its queues to Redis are bounded, and the load is small.
const GROWTH_MAX: f64 = 32.0;

/// The round-trip times of the protocol's pings, and of WebSocket's pings.
type Pings = (Vec<Duration>, Vec<Duration>);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, pinging, stall) = settings.pick((300, 50, Duration::from_secs(10)), (30, 6, Duration::from_secs(3)));
    let total = settings.pick(6_000, 600);
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(30);
    let members = members(&target, count, &rooms).await;
    let load = Load { target, publishers: 4, rooms, total, window: 8, pace: Duration::from_millis(10) };
    let running = load.start();
    running.reaches(total / 10).await;

    let before = resident(&cluster.nodes);
    let (stop, stopped) = watch::channel(false);
    cluster.redis().signal("STOP");
    let clients: Vec<_> =
        (0..pinging).map(|index| tokio::spawn(ping(cluster.address(index), stopped.clone()))).collect();
    let end = Instant::now() + stall;
    let (mut most, mut tick) = (before.clone(), ticks(Duration::from_millis(200)));
    while Instant::now() < end {
        tick.tick().await;
        for (most, now) in most.iter_mut().zip(resident(&cluster.nodes)) {
            *most = now.max(*most);
        }
    }
    cluster.redis().signal("CONT");
    stop.send_replace(true);
    let (mut of_protocol, mut of_websocket) = (Vec::new(), Vec::new());
    for client in clients {
        let (protocol, websocket) = client.await.expect("a pinging client runs to its end");
        of_protocol.extend(protocol);
        of_websocket.extend(websocket);
    }
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    let (reconnected, gaps) = reconnects_and_gaps(&reports);
    let growth = most.iter().zip(&before).map(|(most, before)| most - before).max().unwrap_or_default();
    Outcome::new(Promise::NoLoss, check_history(&published, &mut reports))
        .time(&format!("p99 of {} protocol pings", of_protocol.len()), p99(of_protocol), TARGET)
        .time(&format!("p99 of {} WebSocket pings", of_websocket.len()), p99(of_websocket), TARGET)
        .at_most("a node grew by MiB", growth as f64 / f64::from(1 << 20), GROWTH_MAX)
        .at_most("clients that had to reconnect", reconnected as f64, 0.0)
        .at_most("gaps told", gaps as f64, 0.0)
}

fn resident(nodes: &[Node]) -> Vec<u64> {
    nodes.iter().map(|node| node.resident_bytes().unwrap_or_default()).collect()
}

/// A client that has joined no room and alternates the two kinds of ping.
async fn ping(address: SocketAddr, stopped: watch::Receiver<bool>) -> Pings {
    let mut socket = WebSocket::open(address, "/ws", &[]).await.expect("a client may connect");
    let mut tick = ticks(EVERY);
    let mut pings = Pings::default();
    let welcome = within("welcome", socket.next()).await;
    assert!(matches!(welcome, Incoming::Text(_)), "{welcome:?}");
    while !*stopped.borrow() {
        tick.tick().await;
        pings.0.push(round_trip(&mut socket, Message::text(r#"{"type":"ping"}"#)).await);
        pings.1.push(round_trip(&mut socket, Message::Ping(Vec::new().into())).await);
    }
    pings
}

async fn round_trip(socket: &mut WebSocket, message: Message) -> Duration {
    let sent = Instant::now();
    let by_text = message.is_text();
    socket.send(message).await.expect("the connection stays");
    let answer = async {
        loop {
            match socket.next().await {
                Incoming::Text(_) if by_text => return,
                Incoming::Pong if !by_text => return,
                Incoming::Ended(ended) => panic!("an idle client was closed: {ended:?}"),
                _ => {}
            }
        }
    };
    // A ping without an answer counts with this time, which misses the target.
    let _ = timeout(Duration::from_secs(10), answer).await;
    sent.elapsed()
}
