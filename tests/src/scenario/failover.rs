//! R7: the master dies while its replica lags, and Sentinel promotes the replica: the acknowledged tail is gone. Every
//! member is told, nobody is told that it resumed without a loss, and delivery is back soon after the switch.

use std::time::{Duration, Instant};

use super::{Outcome, Promise, RunSettings, judge, p99};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::{Load, Timing, heads};
use crate::member::{Member, settle_within, stop_all};
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::sentinel::{SWITCH_MAX, Sentinels};
use crate::target::Target;
use crate::wait::{eventually, eventually_within, patient, ticks};

const TARGET: Duration = Duration::from_secs(1);
/// What was acknowledged only by the master that dies.
const TAIL: u64 = 200;
/// After so long delivery is not back.
const BACK_MAX: Duration = Duration::from_secs(20);

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (count, total) = to.pick((200, 8_000), (20, 2_000));
    let scratch = Scratch::new();
    let mut redis = Sentinels::start(scratch.path()).await;
    let cluster = Cluster::over_addresses(2, vec![redis.url()]).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(10);
    let members = members(&target, count, &rooms, None).await;
    let load = Load { target, publishers: 4, rooms, total, window: 8, pace: Duration::from_millis(10) };
    let running = load.start(Timing::new(total));
    let reaches = async |count: u64| {
        eventually("the load goes on", async || running.acknowledged() >= count).await;
    };
    reaches(total / 10).await;
    redis.hold_replica_back().await;
    reaches(total / 10 + TAIL).await;
    let replica = written(&redis.replica).await;
    let tail = written(&redis.master).await - replica;
    redis.master.kill();
    // Some are away while it happens: their cursors lie in what is lost.
    let (away, stay) = members.split_at(count / 10);
    away.iter().for_each(Member::reset);
    eventually_within(patient(SWITCH_MAX), "Sentinel has switched", async || redis.has_switched().await).await;
    let switched = Instant::now();
    let back = delivery_after(switched, stay).await;

    let published = running.finish().await;
    settle_within(patient(BACK_MAX), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let told = reports.iter().filter(|report| !report.gaps.is_empty()).count();
    let verdict = judge(&published, &mut reports);
    Outcome::new(Promise::Honest, verdict)
        .at_least("members told %", 100.0 * told as f64 / count as f64, 100.0)
        .at_least("messages that only the master had", tail as f64, TAIL as f64 / 2.0)
        .at_least("members with delivery back %", 100.0 * back.len() as f64 / stay_count(count) as f64, 100.0)
        .time("p99 after the switch", p99(back), TARGET)
}

/// How many messages a Redis has numbered, in all rooms.
async fn written(redis: &Redis) -> u64 {
    let mut sum = 0;
    for meta in redis.values("KEYS *:m:*").await {
        let numbered = redis.values(&format!("HGET {meta} s")).await;
        sum += numbered.first().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
    }
    sum
}

fn stay_count(count: usize) -> usize {
    count - count / 10
}

/// How long after `since` each member had its first message.
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
