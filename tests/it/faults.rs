//! The fault runs at a small size. The tests check the promises to members and publishers, and ignore the runs' figures:
//! those need full size and an idle machine (`tests/run chaos`).

use std::time::Duration;

use fanfare_tests::scenario::{RunSettings, Scale, named, print_line};

/// Runs one fault run, prints its result, and fails if a promise was broken.
async fn is_kept(name: &str) {
    let scenario = named(name).expect("a fault run has this name");
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
    a_redis_restart_without_its_data_is_reported_as_a_gap: "r4",
    a_redis_that_is_away_disconnects_nobody: "r5",
    a_redis_that_stalls_loses_nothing: "r6",
    lost_subscriptions_lose_nothing: "r8",
    a_rolling_restart_loses_nothing: "r9",
    reconnecting_all_clients_at_once_loses_nothing: "r10",
    joining_and_leaving_rooms_leaves_nothing_behind: "r13",
    any_node_serves_any_request: "r14",
    random_faults_break_no_promise: "r22",
    a_redis_that_refuses_disconnects_nobody: "r36",
    a_log_that_nobody_reads_harms_nobody: "r37",
}
