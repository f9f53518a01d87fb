//! R5: Redis is away for half a minute. No client is disconnected, and whoever publishes is told within a second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Outcome, Promise, RunSettings, judge, noticed, publish_once, say};
use crate::client::{Client, Closed, Event};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::http;
use crate::member::stop_all;
use crate::target::Target;
use crate::wait::{eventually, pause, ticks};

/// One publish: when, how long until the answer, and whether it was an acknowledgement.
struct PollResponse {
    sent: Instant,
    took: Duration,
    acknowledged: bool,
}

/// How often each publisher tries.
const EVERY: Duration = Duration::from_millis(50);
/// What counts as no answer.
const NONE: Duration = Duration::from_secs(20);
const TARGET: Duration = Duration::from_secs(1);

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (count, room_count, away) = to.pick((600, 60, Duration::from_secs(30)), (30, 6, Duration::from_secs(2)));
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(room_count);
    let members = members(&target, count, &rooms, None).await;
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
    eventually("every member knows", async || members.iter().all(|member| member.gaps() > 0)).await;
    published.extend(publish_once(cluster.address(1), &rooms, 1_000_000).await);
    eventually("delivery is back", async || {
        members.iter().all(|member| member.last_message().is_some_and(|at| at > back))
    })
    .await;

    let mut reports = stop_all(members).await;
    let dropped = noticed(&reports).0;
    let mut outcome =
        Outcome::new(Promise::Honest, judge(&published, &mut reports)).at_most("clients dropped", dropped as f64, 0.0);
    for (name, tasks) in [("WebSocket", over_ws), ("HTTP", over_http)] {
        let (mut answers, mut closes) = (Vec::new(), 0);
        for task in tasks {
            let (more, closed) = task.await.expect("a publisher lives to the end");
            answers.extend(more);
            closes += closed;
        }
        // What was under way when Redis died counts as well.
        answers.retain(|answer| answer.sent + answer.took >= killed && answer.sent < back);
        let slowest = answers.iter().map(|answer| answer.took).max().unwrap_or(NONE);
        let false_ones = answers.iter().filter(|answer| answer.acknowledged && answer.sent > killed).count();
        outcome = outcome
            .time(&format!("{name}: slowest of {} answers", answers.len()), slowest, TARGET)
            .at_most("acknowledged without Redis", false_ones as f64, 0.0)
            .at_most("publishers closed", f64::from(closes), 0.0);
    }
    outcome
}

/// Publishes until it is stopped; a publisher that is closed counts that and comes back.
async fn publish_over_ws(address: SocketAddr, stopped: watch::Receiver<bool>) -> (Vec<PollResponse>, u32) {
    let mut client = Client::connect(address).await;
    let mut tick = ticks(EVERY);
    let (mut answers, mut closes) = (Vec::new(), 0);
    while !*stopped.borrow() {
        tick.tick().await;
        let (id, sent) = (answers.len(), Instant::now());
        match timeout(NONE, publish(&mut client, id)).await {
            Ok(Ok(reply)) => {
                answers.push(PollResponse { sent, took: sent.elapsed(), acknowledged: reply["type"] == "published" });
            }
            Ok(Err(closed)) => {
                say(&format!("  a publisher was closed: {closed:?}"));
                closes += 1;
                client = Client::connect(address).await;
            }
            Err(_) => answers.push(PollResponse { sent, took: NONE, acknowledged: false }),
        }
    }
    (answers, closes)
}

/// The reply to one publish, or how the connection ended.
async fn publish(client: &mut Client, id: usize) -> Result<Value, Closed> {
    let command = json!({"type": "publish", "id": id, "room": "probe", "data": 1});
    // A connection that takes nothing any more says why when it is read.
    let _ = client.try_send(command.to_string().into()).await;
    loop {
        match client.event().await {
            Event::Frame(frame) if frame.json["id"] == id => return Ok(frame.json),
            Event::Frame(_) => {}
            Event::Closed(closed) => return Err(closed),
        }
    }
}

/// As [`publish_over_ws`]; each request has a connection of its own, so nothing can be closed.
async fn publish_over_http(address: SocketAddr, stopped: watch::Receiver<bool>) -> (Vec<PollResponse>, u32) {
    let mut tick = ticks(EVERY);
    let mut answers = Vec::new();
    while !*stopped.borrow() {
        tick.tick().await;
        let sent = Instant::now();
        let reply = timeout(NONE, http::post(address, "/v1/rooms/probe", &json!(1)).try_send()).await;
        let acknowledged = matches!(reply, Ok(Ok(reply)) if reply.status == 200);
        answers.push(PollResponse { sent, took: sent.elapsed(), acknowledged });
    }
    (answers, 0)
}
