//! R7: the master dies while its replica lags, and Sentinel promotes the replica, so the last acknowledged messages are
//! gone. Every member is told of the gap, no resume claims to be complete, and delivery is back soon after the switch.

use std::time::{Duration, Instant};

use super::measure::{check_history, p99};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::{Load, heads};
use crate::member::{Member, settle_within, stop_all};
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::sentinel::{SWITCH_MAX, Sentinels};
use crate::target::Target;
use crate::wait::{eventually_within, patient, ticks};

/// The target for delivery to be back after the switch.
const BACK_TARGET: Duration = Duration::from_secs(1);
/// How many messages are acknowledged by the master alone before it dies.
const TAIL: u64 = 200;
/// The longest time to wait for delivery to be back.
const BACK_MAX: Duration = Duration::from_secs(20);

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, total) = settings.pick((200, 8_000), (20, 2_000));
    let scratch = Scratch::new();
    let mut redis = Sentinels::start(scratch.path()).await;
    let cluster = Cluster::over_addresses(2, vec![redis.url()]).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(10);
    let members = members(&target, count, &rooms).await;
    let load = Load { target, publishers: 4, rooms, total, window: 8, pace: Duration::from_millis(10) };
    let running = load.start();
    let reaches = async |count: u64| {
        running.reaches(count).await;
    };
    reaches(total / 10).await;
    redis.hold_replica_back().await;
    reaches(total / 10 + TAIL).await;
    let replica = messages_in(&redis.replica).await;
    let tail = messages_in(&redis.master).await - replica;
    redis.master.kill();
    // Some members are disconnected at that time, so their cursors lie in what is lost.
    let (away, connected) = members.split_at(count / 10);
    away.iter().for_each(Member::reset);
    eventually_within(patient(SWITCH_MAX), "Sentinel has switched", async || redis.has_switched().await).await;
    let switched = Instant::now();
    let back = delivery_after(switched, connected).await;
    let percent_back = 100.0 * back.len() as f64 / connected.len() as f64;

    let published = running.finish().await;
    settle_within(patient(BACK_MAX), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let told = reports.iter().filter(|report| !report.gaps.is_empty()).count();
    let verdict = check_history(&published, &mut reports);
    Outcome::new(Promise::EveryLossReported, verdict)
        .at_least("members told %", 100.0 * told as f64 / count as f64, 100.0)
        .at_least("messages that only the master had", tail as f64, TAIL as f64 / 2.0)
        .at_least("members with delivery back %", percent_back, 100.0)
        .time("p99 after the switch", p99(back), BACK_TARGET)
}

/// How many messages a Redis has numbered, in all rooms.
async fn messages_in(redis: &Redis) -> u64 {
    let mut sum = 0;
    for meta in redis.values("KEYS *:m:*").await {
        let numbered = redis.values(&format!("HGET {meta} s")).await;
        sum += numbered.first().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
    }
    sum
}

/// How long after `since` each member received its first message.
async fn delivery_after(since: Instant, members: &[Member]) -> Vec<Duration> {
    let mut waiting: Vec<&Member> = members.iter().collect();
    let (mut back, mut tick) = (Vec::new(), ticks(Duration::from_millis(10)));
    while !waiting.is_empty() && since.elapsed() < patient(BACK_MAX) {
        tick.tick().await;
        let now = since.elapsed();
        waiting.retain(|member| member.last_message().is_none_or(|at| at <= since));
        back.resize(members.len() - waiting.len(), now);
    }
    back
}
