//! R12: a node is killed while its members are present in rooms that members of other nodes watch. On every other node
//! each of them leaves exactly once and soon, and presence does not list it any longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;

use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::RunSettings;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, rooms};
use crate::history::Verdict;
use crate::http;
use crate::wait::{eventually, patient};

const TARGET: Duration = Duration::from_secs(12);
/// A member that has not left after this time counts as a ghost.
const WATCH_MAX: Duration = Duration::from_secs(20);
/// How long a watcher waits for a second `member_left` of the same member.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// A room, with the users of the node that will be killed and the clients of other nodes that watch them.
struct Watched {
    room: String,
    dying: Vec<String>,
    watchers: Vec<Client>,
}

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (room_count, each) = settings.pick((50, 10), (2, 2));
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let (mut watched, mut clients) = (Vec::new(), Vec::new());
    for room in rooms(room_count) {
        let mut watchers = Vec::new();
        for node in [0, 2] {
            let mut watcher = Client::connect(cluster.address(node)).await;
            watcher.join_with(json!({"room": room, "presence": true})).await;
            watchers.push(watcher);
        }
        let mut dying = Vec::new();
        for _ in 0..each {
            let mut client = Client::connect(cluster.address(1)).await;
            client.join(&room).await;
            dying.push(client.session());
            clients.push(client);
        }
        watched.push(Watched { room, dying, watchers });
    }
    eventually("presence lists every member", async || {
        let expected = each + 2;
        listed(&cluster, &watched).await.iter().all(|count| *count == expected)
    })
    .await;
    let killed = Instant::now();
    cluster.nodes[1].kill();
    let watches = watched.iter_mut().flat_map(|Watched { dying, watchers, .. }| {
        let dying = &*dying;
        watchers.iter_mut().map(move |watcher| watch_leaves(watcher, dying, killed))
    });
    let leaves: Vec<BTreeMap<String, Vec<Duration>>> = futures_util::future::join_all(watches).await;

    let due = 2 * room_count * each;
    let once = leaves.iter().flat_map(BTreeMap::values).filter(|times| times.len() == 1).count();
    let last = leaves.iter().flat_map(BTreeMap::values).flatten().max().copied().unwrap_or(WATCH_MAX);
    let ghosts: usize = listed(&cluster, &watched).await.iter().map(|count| count.saturating_sub(2)).sum();
    let verdict = Verdict { members: clients.len() + 2 * room_count, rooms: room_count, ..Verdict::default() };
    Outcome::new(Promise::NoLoss, verdict)
        .at_least(&format!("left exactly once, of {due}"), once as f64, due as f64)
        .time("the last one after", last, TARGET)
        .at_most("ghosts in listings", ghosts as f64, 0.0)
}

/// The presence count of each room, at a node that runs.
async fn listed(cluster: &Cluster, watched: &[Watched]) -> Vec<usize> {
    let mut counts = Vec::new();
    for Watched { room, .. } in watched {
        let reply = http::get(cluster.address(2), &format!("/v1/rooms/{room}/presence")).send().await.expect(200);
        counts.push(usize::try_from(reply["count"].as_u64().unwrap_or_default()).unwrap_or_default());
    }
    counts
}

/// The times of the `member_left` frames of each dying user. Ends some time after all of them have left.
async fn watch_leaves(watcher: &mut Client, dying: &[String], since: Instant) -> BTreeMap<String, Vec<Duration>> {
    let mut times: BTreeMap<String, Vec<Duration>> = dying.iter().map(|user| (user.clone(), Vec::new())).collect();
    let mut end = since + patient(WATCH_MAX);
    while let Ok(next) = timeout(end.saturating_duration_since(Instant::now()), watcher.try_next()).await {
        let frame = match next {
            Ok(frame) => frame,
            Err(ended) => {
                print_line(&format!("  a watcher was disconnected: {ended:?}"));
                break;
            }
        };
        if frame.kind() != "member_left" {
            continue;
        }
        if let Some(times) = frame.json["member"]["user"].as_str().and_then(|user| times.get_mut(user)) {
            times.push(since.elapsed());
        }
        if times.values().all(|times| !times.is_empty()) {
            end = end.min(Instant::now() + AFTERWARDS);
        }
    }
    times
}
