//! R13: rooms are joined and left again and again, a million times. The gateway grows no further once it is warm, and
//! nothing of the rooms is left in Redis: no subscription, no presence.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;

use super::{Outcome, Promise, RunSettings, say};
use crate::cluster::Cluster;
use crate::history::Verdict;
use crate::rng::Rng;
use crate::socket::{Incoming, Socket};
use crate::wait::{holds_within, patient, ticks, within_time};

/// A session may request 500 things a second, and has a fifth of one for a batch of joins and leaves. Slower than that: with
/// more than some 20,000 joins a second Redis could not note who comes and goes, and the run would measure the backlog.
const BATCH_EVERY: Duration = Duration::from_millis(600);
/// One room in ten has presence, which costs Redis scripts at each join and leave.
const CONFIG: &str = "[[rooms]]\nmatch = \"plain:*\"\npresence = false\n[limits]\npublishes_per_second = 0\n";
/// Of each of the two kinds. A room leaves two keys that expire: its place, and the version of its members.
const ROOMS: u64 = 20_000;
/// Commands that one session has under way: far below its outbox.
const BATCH: usize = 50;
/// After so long subscriptions without members stay for ever.
const LET_GO: Duration = Duration::from_secs(30);
/// The allocator gives unused memory back within about ten seconds.
const CALM: Duration = Duration::from_secs(12);
const ROUND_MAX: Duration = Duration::from_secs(240);

/// What is left when nobody is in a room.
#[derive(Clone, Copy, Debug)]
struct Rest {
    resident: u64,
    subscriptions: usize,
    presence_keys: usize,
    keys: usize,
}

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (sessions, warm, measured) = to.pick((120, 240_000, 1_000_000), (8, 1_000, 4_000));
    let mut cluster = Cluster::over_redis(1).config(CONFIG).start().await;
    let round = async |cluster: &mut Cluster, total: usize, seed: u64| -> (Rest, Duration) {
        let start = Instant::now();
        let churns: Vec<_> = (0..sessions)
            .map(|index| churn(cluster.address(0), total / sessions, Rng::new(seed ^ ((index as u64) << 32))))
            .map(tokio::spawn)
            .collect();
        for churn in churns {
            within_time(patient(ROUND_MAX), "all joins and leaves", churn).await.expect("a session lives to the end");
        }
        let took = start.elapsed();
        (rest(cluster, to.pick(CALM, Duration::from_millis(100))).await, took)
    };
    let (before, _) = round(&mut cluster, warm, to.seed).await;
    say(&format!("  warm after {warm}: {before:?}"));
    let (after, took) = round(&mut cluster, measured, !to.seed).await;
    say(&format!("  after {measured} more in {took:.0?}: {after:?}"));
    let drift = 100.0 * (after.resident as f64 / before.resident as f64 - 1.0);
    let verdict = Verdict { members: sessions, ..Verdict::default() };
    let outcome = Outcome::new(Promise::Clean, verdict)
        .note(format!("{measured} joins and as many leaves in {took:.0?}"))
        .at_most("Redis subscriptions left", after.subscriptions as f64, 0.0)
        .at_most("presence keys left", after.presence_keys as f64, 0.0)
        .at_most("keys that have yet to expire", after.keys as f64, (2 * 2 * ROOMS) as f64);
    match to.scale {
        super::Scale::Full => outcome.at_most("memory drift %", drift, 3.0),
        // A process that is a second old still grows.
        super::Scale::Short => outcome,
    }
}

/// One session's joins and leaves, in batches of different rooms.
async fn churn(address: SocketAddr, mut total: usize, mut rng: Rng) {
    let mut socket = Socket::open(address, "/ws", &[]).await.expect("clients are welcome");
    let mut tick = ticks(BATCH_EVERY);
    while total > 0 {
        tick.tick().await;
        let batch = BATCH.min(total);
        let mut rooms = BTreeSet::new();
        while rooms.len() < batch {
            let kind = if rng.below(10) == 0 { "present" } else { "plain" };
            rooms.insert(format!("{kind}:{}", rng.below(ROOMS)));
        }
        for (command, answer) in [("join", "joined"), ("leave", "left")] {
            for room in &rooms {
                let text = format!(r#"{{"type":"{command}","room":"{room}"}}"#);
                socket.send(Message::text(text)).await.expect("the connection stays");
            }
            answers(&mut socket, answer, batch).await;
        }
        total -= batch;
    }
}

/// Reads on until so many answers of a kind have come.
async fn answers(socket: &mut Socket, kind: &str, mut count: usize) {
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
            Incoming::Closed(closed) => panic!("a session was closed: {closed:?}"),
        }
    }
}

/// Waits until nothing is left that goes by itself, and says what stays.
async fn rest(cluster: &mut Cluster, calm: Duration) -> Rest {
    let (mut subscriptions, mut presence_keys) = (0, 0);
    // Counting keys keeps Redis busy, so not too often.
    let mut looks = ticks(Duration::from_secs(1));
    holds_within(patient(LET_GO), async || {
        looks.tick().await;
        subscriptions = cluster.redis().values("PUBSUB CHANNELS fanfare:{*").await.len();
        presence_keys = presence(cluster).await;
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
    Rest { resident, subscriptions, presence_keys, keys: keys.expect("Redis counts its keys") }
}

/// How many keys of rooms' presence there are.
async fn presence(cluster: &mut Cluster) -> usize {
    let mut count = 0;
    // Not `pu:`, which holds a room's version for an hour longer and counts among the keys.
    for part in ["pr:*", "nr:*", "rooms"] {
        count += cluster.redis().values(&format!("KEYS fanfare:{{p*}}:{part}")).await.len();
    }
    count
}
