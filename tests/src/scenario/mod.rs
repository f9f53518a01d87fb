//! The fault runs: each breaks a cluster in one way under load, measures what clients notice of it, and ends in the
//! history checker. Called at full size by the binary `chaos` and at a small one by `it/faults`; a run starts everything
//! it needs, and never shares it. One file per run, named by what breaks.

mod any_node;
mod churn;
mod failover;
mod ghosts;
mod killed_node;
mod lost_subscriptions;
mod mixed_transports;
mod outcome;
mod random_faults;
mod redis_away;
mod redis_forgets;
mod redis_stalls;
mod rolling_restart;
mod stampede;

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::history::{MemberLog, Position, Published, Verdict, check};
use crate::http;
use crate::load::percentile;
use crate::member::Report;
pub use outcome::{Outcome, Promise, say};

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As the scoreboard asks.
    Full,
    /// A few seconds, for every run of the tests: the promises hold, the figures say little.
    Short,
}

/// What a run is told.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings {
    /// Of everything random in it.
    pub seed: u64,
    /// How large.
    pub scale: Scale,
    /// How long, for runs whose length is free.
    pub length: Duration,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The row of the scoreboard.
    pub name: &'static str,
    /// What breaks.
    pub what: &'static str,
    /// Does it.
    pub run: fn(RunSettings) -> LocalBoxFuture<'static, Outcome>,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario { name: "r2", what: "a node is killed under load", run: |to| Box::pin(killed_node::run(to)) },
    Scenario {
        name: "r3",
        what: "the same over every transport, another one at each resume",
        run: |to| Box::pin(mixed_transports::run(to)),
    },
    Scenario {
        name: "r4",
        what: "Redis comes back empty, and from an old snapshot",
        run: |to| Box::pin(redis_forgets::run(to)),
    },
    Scenario { name: "r5", what: "Redis is away", run: |to| Box::pin(redis_away::run(to)) },
    Scenario { name: "r6", what: "Redis stalls", run: |to| Box::pin(redis_stalls::run(to)) },
    Scenario { name: "r7", what: "Sentinel fails over to a replica that lags", run: |to| Box::pin(failover::run(to)) },
    Scenario {
        name: "r8",
        what: "one node's subscriber connections are killed again and again",
        run: |to| Box::pin(lost_subscriptions::run(to)),
    },
    Scenario { name: "r9", what: "a rolling restart behind nginx", run: |to| Box::pin(rolling_restart::run(to)) },
    Scenario { name: "r10", what: "all clients of a node are dropped at once", run: |to| Box::pin(stampede::run(to)) },
    Scenario { name: "r12", what: "a node is killed with present members", run: |to| Box::pin(ghosts::run(to)) },
    Scenario { name: "r13", what: "rooms are joined and left for ever", run: |to| Box::pin(churn::run(to)) },
    Scenario {
        name: "r14",
        what: "every request goes to another node than the last",
        run: |to| Box::pin(any_node::run(to)),
    },
    Scenario { name: "r22", what: "random faults, --minutes long", run: |to| Box::pin(random_faults::run(to)) },
];

/// The run of this name; `chaos` is r22.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    let name = if name == "chaos" { "r22" } else { name };
    ALL.iter().find(|scenario| scenario.name == name)
}

impl RunSettings {
    /// One value for full size, one for short.
    fn pick<T>(&self, full: T, short: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Short => short,
        }
    }
}

/// The time below which 99 of 100 lie; zero for none.
fn p99(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    percentile(&times, 99).unwrap_or_default()
}

/// Checks the logs of the members against what was published, and says the faults.
fn judge(published: &[Published], reports: &mut [Report]) -> Verdict {
    let logs: Vec<MemberLog> = reports.iter_mut().map(|report| std::mem::take(&mut report.log)).collect();
    let verdict = check(published, &logs);
    for fault in &verdict.faults {
        say(&format!("  {fault}"));
    }
    verdict
}

/// Publishes one message to each room over HTTP, with the numbers from `first` on: for rooms that are quiet after it.
async fn publish_once(address: std::net::SocketAddr, rooms: &[String], first: u64) -> Vec<Published> {
    let mut published = Vec::new();
    for (room, id) in rooms.iter().zip(first..) {
        let data = serde_json::json!({"n": id, "node": "http"});
        let reply = http::post(address, &format!("/v1/rooms/{room}"), &data).send().await.expect(200);
        let at = reply["cursor"].as_str().and_then(Position::parse).expect("the room has history");
        published.push(Published { room: room.clone(), id, at });
    }
    published
}

/// How many of the members had to reconnect, and how often a member was told a gap.
fn noticed(reports: &[Report]) -> (usize, usize) {
    let reconnected = reports.iter().filter(|report| report.nodes.len() > 1).count();
    (reconnected, reports.iter().map(|report| report.gaps.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::{ALL, named};

    #[test]
    fn every_run_has_a_name_of_its_own() {
        for scenario in ALL {
            assert_eq!(named(scenario.name).map(|found| found.what), Some(scenario.what));
        }
        assert_eq!(named("chaos").map(|found| found.name), Some("r22"));
        assert!(named("r1").is_none());
    }
}
