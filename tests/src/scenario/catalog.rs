//! The list of all fault runs. Called by the program `chaos` and by `it/faults`.

use futures_util::future::LocalBoxFuture;

use super::outcome::Outcome;
use super::settings::RunSettings;
use super::{any_node, churn, failover, ghosts, killed_node, lost_subscriptions, mixed_transports, random_faults};
use super::{redis_away, redis_forgets, redis_refuses, redis_stalls, rolling_restart, stampede, unread_log};

/// A fault run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its row in docs/scoreboard.md.
    pub name: &'static str,
    /// What breaks.
    pub what: &'static str,
    /// Runs it.
    pub run: fn(RunSettings) -> LocalBoxFuture<'static, Outcome>,
}

macro_rules! scenarios {
    ($($name:literal $module:ident $what:literal,)*) => {
        /// All of them.
        pub const ALL: &[Scenario] = &[
            $(Scenario { name: $name, what: $what, run: |settings| Box::pin($module::run(settings)) }),*
        ];
    };
}

scenarios! {
    "r2" killed_node "a node is killed under load",
    "r3" mixed_transports "as r2, and members use another transport at each resume",
    "r4" redis_forgets "Redis comes back empty, and from an old snapshot",
    "r5" redis_away "Redis is away",
    "r6" redis_stalls "Redis stalls",
    "r7" failover "Sentinel fails over to a replica that lags",
    "r8" lost_subscriptions "one node's subscriber connections are killed again and again",
    "r9" rolling_restart "a rolling restart behind nginx",
    "r10" stampede "all clients of a node are dropped at once",
    "r12" ghosts "a node is killed with present members",
    "r13" churn "rooms are joined and left again and again",
    "r14" any_node "every request goes to another node than the last",
    "r22" random_faults "random faults for --minutes",
    "r36" redis_refuses "Redis refuses what it is asked for, in each of its ways",
    "r37" unread_log "nobody reads the nodes' log",
}

/// The run with this name; `chaos` is another name of r22.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    let name = if name == "chaos" { "r22" } else { name };
    ALL.iter().find(|scenario| scenario.name == name)
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
