//! Waiting with a deadline: the only way in which a test lets time pass. Called everywhere in the harness and the tests.
//! Every wait ends as soon as its condition holds, and every wait has an end.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often a condition is checked: often compared with every time-out of the protocol, seldom compared with the cost
/// of one check.
const POLL: Duration = Duration::from_millis(20);

/// `duration` multiplied by `FANFARE_TEST_PATIENCE` (default 1), so that slow machines get more time.
#[must_use]
pub fn patient(duration: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        std::env::var("FANFARE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0_f64)
    });
    duration.mul_f64(*factor)
}

/// The time limit of every wait that states no other.
#[must_use]
pub fn patience() -> Duration {
    patient(Duration::from_secs(10))
}

/// The result of `future`, within [`patience`].
///
/// # Panics
/// If the deadline passes; the message says what was awaited.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    within_time(patience(), what, future).await
}

/// The result of `future`, within `limit`.
///
/// # Panics
/// If the deadline passes; the message says what was awaited.
pub async fn within_time<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("timed out after {limit:?} waiting for {what}"),
    }
}

/// Returns once `condition` holds; checks it every 20 ms.
///
/// # Panics
/// If it does not hold within [`patience`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(patience(), what, condition).await;
}

/// Returns once `condition` holds; checks it every 20 ms.
///
/// # Panics
/// If it does not hold within `limit`.
pub async fn eventually_within(limit: Duration, what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(holds_within(limit, condition).await, "timed out after {limit:?} waiting until {what}");
}

/// Whether `condition` began to hold within `limit`; for cases in which a later check reports the failure better than a
/// time-out would.
pub async fn holds_within(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let mut tick = ticks(POLL);
    let checks = async {
        loop {
            tick.tick().await;
            if condition().await {
                return;
            }
        }
    };
    timeout(limit, checks).await.is_ok()
}

/// The result of `future`, as long as `progress` changes at least once within each `limit`; nothing otherwise. For work whose
/// amount is known and whose speed depends on the machine.
pub async fn while_progressing<F: Future>(limit: Duration, progress: impl Fn() -> u64, future: F) -> Option<F::Output> {
    let stalls = async {
        let mut last = progress();
        while holds_within(limit, async || progress() != last).await {
            last = progress();
        }
    };
    tokio::select! {
        biased;
        output = future => Some(output),
        () = stalls => None,
    }
}

/// Lets time pass for a client that backs off, or for the length of a fault: cases in which the time itself is under
/// test. To wait for an event use [`eventually`].
pub async fn pause(duration: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + duration).await;
}

/// An interval for retries: the first tick comes at once, and a late tick delays the later ones, so there is no burst.
#[must_use]
pub fn ticks(period: Duration) -> tokio::time::Interval {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
