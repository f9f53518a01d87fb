//! R5: Redis is away for half a minute. No client is disconnected, and every publisher gets a reply within a second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::measure::{check_history, publish_once, reconnects_and_gaps};
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::RunSettings;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::http;
use crate::member::stop_all;
use crate::target::Target;
use crate::transport::Ended;
use crate::wait::{eventually, pause, ticks};

/// An attempt to publish.
pub(super) struct Attempt {
    sent: Instant,
    /// The time until the reply.
    pub(super) took: Duration,
    pub(super) acknowledged: bool,
}

/// The interval between two attempts of a publisher.
const EVERY: Duration = Duration::from_millis(50);
/// An attempt without a reply after this time has failed.
const REPLY_MAX: Duration = Duration::from_secs(20);
const TARGET: Duration = Duration::from_secs(1);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, room_count, away) = settings.pick((600, 60, Duration::from_secs(30)), (30, 6, Duration::from_secs(2)));
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(room_count);
    let members = members(&target, count, &rooms).await;
    let mut published = publish_once(cluster.address(0), &rooms, 0).await;

    let (stop, stopped) = watch::channel(false);
    let over_ws: Vec<_> =
        (0..2).map(|node| tokio::spawn(publish_over_ws(cluster.address(node), stopped.clone()))).collect();
    let over_http: Vec<_> =
        (0..2).map(|node| tokio::spawn(publish_over_http(cluster.address(node), stopped.clone()))).collect();
    pause(Duration::from_millis(500)).await;
    let killed = Instant::now();
    cluster.redis().kill();
    pause(away).await;
    let back = Instant::now();
    cluster.redis().start_empty().await;
    stop.send_replace(true);
    eventually("publishes are acknowledged again", async || {
        let reply = http::post(cluster.address(0), "/v1/rooms/again", &json!(1)).try_send().await;
        reply.is_ok_and(|reply| reply.status == 200)
    })
    .await;
    eventually("every member is told of a gap", async || members.iter().all(|member| member.gaps() > 0)).await;
    published.extend(publish_once(cluster.address(1), &rooms, 1_000_000).await);
    eventually("delivery is back", async || {
        members.iter().all(|member| member.last_message().is_some_and(|at| at > back))
    })
    .await;

    let mut reports = stop_all(members).await;
    let dropped = reconnects_and_gaps(&reports).0;
    let verdict = check_history(&published, &mut reports);
    let mut outcome = Outcome::new(Promise::EveryLossReported, verdict).at_most("clients dropped", dropped as f64, 0.0);
    for (name, tasks) in [("WebSocket", over_ws), ("HTTP", over_http)] {
        let (mut attempts, mut closes) = (Vec::new(), 0);
        for task in tasks {
            let (more, closed) = task.await.expect("a publisher runs to its end");
            attempts.extend(more);
            closes += closed;
        }
        // Attempts that were unanswered when Redis died count too.
        attempts.retain(|attempt: &Attempt| attempt.sent + attempt.took >= killed && attempt.sent < back);
        let slowest = attempts.iter().map(|attempt| attempt.took).max().unwrap_or(REPLY_MAX);
        let wrong = attempts.iter().filter(|attempt| attempt.acknowledged && attempt.sent > killed).count();
        outcome = outcome
            .time(&format!("{name}: slowest of {} answers", attempts.len()), slowest, TARGET)
            .at_most("acknowledged without Redis", wrong as f64, 0.0)
            .at_most("publishers closed", f64::from(closes), 0.0);
    }
    outcome
}

/// Publishes until it is stopped. A publisher whose connection ends reconnects; the number of such ends is returned.
async fn publish_over_ws(address: SocketAddr, stopped: watch::Receiver<bool>) -> (Vec<Attempt>, u32) {
    let mut client = Client::connect(address).await;
    let mut tick = ticks(EVERY);
    let (mut attempts, mut closes) = (Vec::new(), 0);
    while !*stopped.borrow() {
        tick.tick().await;
        let (id, sent) = (attempts.len(), Instant::now());
        match timeout(REPLY_MAX, publish(&mut client, id)).await {
            Ok(Ok(reply)) => {
                attempts.push(Attempt { sent, took: sent.elapsed(), acknowledged: reply["type"] == "published" });
            }
            Ok(Err(ended)) => {
                print_line(&format!("  a publisher was closed: {ended:?}"));
                closes += 1;
                client = Client::connect(address).await;
            }
            Err(_) => attempts.push(Attempt { sent, took: REPLY_MAX, acknowledged: false }),
        }
    }
    (attempts, closes)
}

/// The reply to one publish, or the end of the connection.
async fn publish(client: &mut Client, id: usize) -> Result<Value, Ended> {
    let command = json!({"type": "publish", "id": id, "room": "probe", "data": 1});
    // If the connection has ended, reading from it says why.
    let _ = client.try_send(command.to_string().into()).await;
    loop {
        let frame = client.try_next().await?;
        if frame.json["id"] == id {
            return Ok(frame.json);
        }
    }
}

/// Like [`publish_over_ws`], with a connection for each request, so that no connection can be closed between two.
pub(super) async fn publish_over_http(address: SocketAddr, stopped: watch::Receiver<bool>) -> (Vec<Attempt>, u32) {
    let mut tick = ticks(EVERY);
    let mut attempts = Vec::new();
    while !*stopped.borrow() {
        tick.tick().await;
        let sent = Instant::now();
        let reply = timeout(REPLY_MAX, http::post(address, "/v1/rooms/probe", &json!(1)).try_send()).await;
        let acknowledged = matches!(reply, Ok(Ok(reply)) if reply.status == 200);
        attempts.push(Attempt { sent, took: sent.elapsed(), acknowledged });
    }
    (attempts, 0)
}
