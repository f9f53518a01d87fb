//! R13: sessions join and leave rooms again and again, a million times. The memory of the gateway stops growing once it
//! is warm, and Redis keeps no subscription and no presence of the rooms.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;

use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::{RunSettings, Scale};
use crate::cluster::Cluster;
use crate::history::Verdict;
use crate::rng::Rng;
use crate::transport::websocket::{Incoming, WebSocket};
use crate::wait::{holds_within, patient, ticks, within_time};

/// A session may send 500 commands a second, which allows a batch of joins and leaves every 200 ms. This is slower: with
/// more than some 20,000 joins a second Redis could not keep up with presence, and the run would measure the backlog.
const BATCH_EVERY: Duration = Duration::from_millis(600);
/// One room in ten has presence, whose joins and leaves cost a Redis script each.
const CONFIG: &str = "[[rooms]]\nmatch = \"plain:*\"\npresence = false\n[limits]\npublishes_per_second = 0\n";
/// The number of rooms of each of the two kinds. A room leaves two keys that expire: its head and its presence version.
const ROOMS: u64 = 20_000;
/// How many commands a session has unanswered: far fewer than its outbox can hold replies.
const BATCH: usize = 50;
/// A subscription without members that is still there after this time counts as left behind.
const LET_GO: Duration = Duration::from_secs(30);
/// The allocator returns unused memory to the system within about ten seconds.
const CALM: Duration = Duration::from_secs(12);
const ROUND_MAX: Duration = Duration::from_secs(240);

/// What is left when all rooms are empty.
#[derive(Clone, Copy, Debug)]
struct Remains {
    resident: u64,
    subscriptions: usize,
    presence_keys: usize,
    keys: usize,
}

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (sessions, warm, measured) = settings.pick((120, 240_000, 1_000_000), (8, 1_000, 4_000));
    let mut cluster = Cluster::over_redis(1).config(CONFIG).start().await;
    let round = async |cluster: &mut Cluster, total: usize, seed: u64| -> (Remains, Duration) {
        let start = Instant::now();
        let churns: Vec<_> = (0..sessions)
            .map(|index| churn(cluster.address(0), total / sessions, Rng::new(seed ^ ((index as u64) << 32))))
            .map(tokio::spawn)
            .collect();
        for churn in churns {
            within_time(patient(ROUND_MAX), "all joins and leaves", churn).await.expect("a session runs to its end");
        }
        let took = start.elapsed();
        (remains(cluster, settings.pick(CALM, Duration::from_millis(100))).await, took)
    };
    let (before, _) = round(&mut cluster, warm, settings.seed).await;
    print_line(&format!("  warm after {warm}: {before:?}"));
    let (after, took) = round(&mut cluster, measured, !settings.seed).await;
    print_line(&format!("  after {measured} more in {took:.0?}: {after:?}"));
    let drift = 100.0 * (after.resident as f64 / before.resident as f64 - 1.0);
    let verdict = Verdict { members: sessions, ..Verdict::default() };
    let outcome = Outcome::new(Promise::NoLoss, verdict)
        .note(format!("{measured} joins and as many leaves in {took:.0?}"))
        .at_most("Redis subscriptions left", after.subscriptions as f64, 0.0)
        .at_most("presence keys left", after.presence_keys as f64, 0.0)
        .at_most("keys that have yet to expire", after.keys as f64, (2 * 2 * ROOMS) as f64);
    match settings.scale {
        Scale::Full => outcome.at_most("memory drift %", drift, 3.0),
        // A process that is one second old still grows.
        Scale::Small => outcome,
    }
}

/// The joins and leaves of one session, in batches of different rooms.
async fn churn(address: SocketAddr, mut total: usize, mut rng: Rng) {
    let mut socket = WebSocket::open(address, "/ws", &[]).await.expect("a client may connect");
    let mut tick = ticks(BATCH_EVERY);
    while total > 0 {
        tick.tick().await;
        let batch = BATCH.min(total);
        let mut rooms = BTreeSet::new();
        while rooms.len() < batch {
            let kind = if rng.below(10) == 0 { "present" } else { "plain" };
            rooms.insert(format!("{kind}:{}", rng.below(ROOMS)));
        }
        for (command, reply) in [("join", "joined"), ("leave", "left")] {
            for room in &rooms {
                let text = format!(r#"{{"type":"{command}","room":"{room}"}}"#);
                socket.send(Message::text(text)).await.expect("the connection stays");
            }
            await_replies(&mut socket, reply, batch).await;
        }
        total -= batch;
    }
}

/// Reads until `count` replies of a type have come.
async fn await_replies(socket: &mut WebSocket, kind: &str, mut count: usize) {
    #[derive(Deserialize)]
    struct Kind<'a> {
        r#type: &'a str,
    }
    while count > 0 {
        match socket.next().await {
            Incoming::Text(text) => {
                let frame: Kind<'_> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert_ne!(frame.r#type, "error", "{text}");
                count -= usize::from(frame.r#type == kind);
            }
            Incoming::Ping | Incoming::Pong => {}
            Incoming::Ended(ended) => panic!("a session was closed: {ended:?}"),
        }
    }
}

/// Waits until subscriptions and presence have been removed, and returns what is left.
async fn remains(cluster: &mut Cluster, calm: Duration) -> Remains {
    let (mut subscriptions, mut presence_keys) = (0, 0);
    // Once a second only, because counting keys is expensive for Redis.
    let mut checks = ticks(Duration::from_secs(1));
    holds_within(patient(LET_GO), async || {
        checks.tick().await;
        subscriptions = cluster.redis().values("PUBSUB CHANNELS fanfare:{*").await.len();
        presence_keys = count_presence_keys(cluster).await;
        subscriptions == 0 && presence_keys == 0
    })
    .await;
    let end = Instant::now() + calm;
    let (mut resident, mut tick) = (u64::MAX, ticks(Duration::from_millis(200)));
    while Instant::now() < end {
        tick.tick().await;
        resident = resident.min(cluster.nodes[0].resident_bytes().expect("the node runs"));
    }
    let keys = cluster.redis().values("DBSIZE").await.first().and_then(|count| count.parse().ok());
    Remains { resident, subscriptions, presence_keys, keys: keys.expect("Redis counts its keys") }
}

async fn count_presence_keys(cluster: &mut Cluster) -> usize {
    let mut count = 0;
    // Without `pu:`, the presence version of a room, which stays for an hour and is counted among all keys.
    for part in ["pr:*", "nm:*", "rooms"] {
        count += cluster.redis().values(&format!("KEYS fanfare:{{p*}}:{part}")).await.len();
    }
    count
}
