//! R36: Redis answers and refuses, in each of its ways, one after the other and under load. No client is disconnected,
//! every publisher gets a reply within a second, the log stays short, and all is well again soon after each refusal.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::measure::{check_history, reconnects_and_gaps, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::redis_away::{Attempt, publish_over_http};
use super::settings::RunSettings;
use crate::cluster::{Cluster, Node};
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::Load;
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::{holds_within, patient, pause};

/// One way in which Redis refuses: the commands after which it does, and those after which it does not.
struct Refusal {
    name: &'static str,
    begin: &'static [&'static str],
    end: &'static [&'static str],
}

/// The user of the nodes. The run itself is the default user, whom nothing is refused.
const USER: &str = "ACL SETUSER node reset on >secret ~* &* +@all";

const REFUSALS: [Refusal; 9] = [
    Refusal {
        name: "too few replicas",
        begin: &["CONFIG SET min-replicas-to-write 1"],
        end: &["CONFIG SET min-replicas-to-write 0"],
    },
    Refusal { name: "a full memory", begin: &["CONFIG SET maxmemory 1"], end: &["CONFIG SET maxmemory 0"] },
    Refusal {
        name: "a failed snapshot",
        begin: &["CONFIG SET save \"3600 1\"", "CONFIG SET dir /proc", "BGSAVE"],
        end: &["CONFIG SET save \"\""],
    },
    Refusal { name: "a replica", begin: &["REPLICAOF 127.0.0.1 1"], end: &["REPLICAOF NO ONE"] },
    Refusal {
        name: "a replica without its master",
        begin: &["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"],
        end: &["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
    },
    Refusal { name: "no right to write", begin: &["ACL SETUSER node -@write"], end: &[USER] },
    Refusal { name: "no right to run scripts", begin: &["ACL SETUSER node -@scripting"], end: &[USER] },
    Refusal { name: "no such user", begin: &["ACL SETUSER node off", "CLIENT KILL USER node"], end: &[USER] },
    Refusal {
        name: "a busy script",
        begin: &["CONFIG SET busy-reply-threshold 50", "EVAL \"while true do end\" 0"],
        end: &["SCRIPT KILL"],
    },
];

/// How long each refusal lasts, and after its end until publishes are acknowledged again.
const LENGTH: Duration = Duration::from_secs(3);
const BACK_MAX: Duration = Duration::from_secs(20);
const BACK_TARGET: Duration = Duration::from_secs(2);
const REPLY_TARGET: Duration = Duration::from_secs(1);
/// Lines of a node's log per second of a refusal: one for each class, connection and change of health.
const LINES_TARGET: f64 = 10.0;

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, length) = settings.pick((300, LENGTH), (30, LENGTH / 3));
    let scratch = Scratch::new();
    let redis = Redis::start_as("redis", scratch.path(), &["--enable-protected-configs", "yes"]).await;
    redis.values(USER).await;
    let url = format!("redis://node:secret@{}", redis.address());
    let cluster = Cluster::over_addresses(2, vec![url]).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(30);
    let members = members(&target, count, &rooms).await;
    let load = Load { target, publishers: 3, rooms, total: 100_000, window: 8, pace: Duration::from_millis(10) };
    let running = load.start();
    running.reaches(100).await;

    let mut slowest_back = Duration::ZERO;
    let (mut slowest_reply, mut most_lines) = (Duration::ZERO, 0.0_f64);
    for refusal in REFUSALS {
        let lines = log_lines(&cluster.nodes);
        let (stop, stopped) = watch::channel(false);
        let probe = tokio::spawn(publish_over_http(cluster.address(0), stopped));
        for command in refusal.begin {
            let _ = tokio::time::timeout(Duration::from_millis(500), redis.values(command)).await;
        }
        pause(length).await;
        stop.send_replace(true);
        let (attempts, _): (Vec<Attempt>, u32) = probe.await.expect("the probe runs to its end");
        let lines = (log_lines(&cluster.nodes) - lines) as f64 / cluster.nodes.len() as f64 / length.as_secs_f64();
        for command in refusal.end {
            redis.values(command).await;
        }
        let (ended, so_far) = (Instant::now(), running.acknowledged());
        let is_back = holds_within(patient(BACK_MAX), async || running.acknowledged() > so_far + 10).await;
        let back = if is_back { ended.elapsed() } else { Duration::MAX };
        running.reaches(so_far + 100).await;
        let reply = attempts.iter().map(|attempt| attempt.took).max().unwrap_or_default();
        let served = attempts.iter().filter(|attempt| attempt.acknowledged).count();
        print_line(&format!(
            "  {}: {served} of {} publishes served, slowest reply {reply:.1?}, {lines:.1} lines/s, back in {back:.1?}",
            refusal.name,
            attempts.len()
        ));
        slowest_back = slowest_back.max(back);
        slowest_reply = slowest_reply.max(reply);
        most_lines = most_lines.max(lines);
    }
    running.wind_down();
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    let (reconnected, gaps) = reconnects_and_gaps(&reports);
    Outcome::new(Promise::EveryLossReported, check_history(&published, &mut reports))
        .at_least("refusals", REFUSALS.len() as f64, 9.0)
        .time("slowest reply to a publisher", slowest_reply, REPLY_TARGET)
        .time("back after", slowest_back, BACK_TARGET)
        .at_most("lines of a log per second", most_lines, LINES_TARGET)
        .at_most("clients that had to reconnect", reconnected as f64, 0.0)
        .note(format!("gaps told {gaps}"))
}

fn log_lines(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.log().lines().count()).sum()
}
