//! The fault runs at a small size: what was promised holds in all of them. Their figures are for `tests/run chaos`, on a
//! machine that does nothing else.

use std::time::Duration;

use fanfare_tests::scenario::{RunSettings, Scale, named, print_line};

/// Runs one and says its line; only what members were promised counts here.
async fn is_kept(name: &str) {
    let scenario = named(name).expect("there is such a run");
    let seed = 7;
    let outcome = (scenario.run)(RunSettings { seed, scale: Scale::Small, length: Duration::from_secs(5) }).await;
    let line = outcome.line(name, seed);
    print_line(&line);
    assert!(outcome.is_kept(), "{line}");
}

macro_rules! runs {
    ($($sentence:ident: $name:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                is_kept($name).await;
            }
        )*
    };
}

runs! {
    a_node_killed_under_load_loses_nothing: "r2",
    a_node_killed_under_load_loses_nothing_over_any_transport: "r3",
    a_redis_that_forgets_is_told_as_a_gap: "r4",
    a_redis_that_is_away_disconnects_nobody: "r5",
    a_redis_that_stalls_loses_nothing: "r6",
    lost_subscriptions_lose_nothing: "r8",
    a_rolling_restart_loses_nothing: "r9",
    a_stampede_loses_nothing: "r10",
    rooms_joined_and_left_leave_nothing: "r13",
    any_node_serves_any_request: "r14",
    random_faults_break_no_promise: "r22",
}
