//! Waiting with a deadline: the only way a test may let time pass. Called everywhere in the harness and the tests;
//! it never sleeps a fixed time and never waits without an end.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often a condition is looked at: short beside every time-out of the protocol, long beside one look.
const POLL: Duration = Duration::from_millis(20);

/// `duration` times `FANFARE_TEST_PATIENCE` (default 1): slow machines get more time, the sentences stay the same.
#[must_use]
pub fn patient(duration: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        std::env::var("FANFARE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0_f64)
    });
    duration.mul_f64(*factor)
}

/// How long anything may take that has no closer bound of its own.
#[must_use]
pub fn patience() -> Duration {
    patient(Duration::from_secs(10))
}

/// The result of `future`, within [`patience`].
///
/// # Panics
/// When the deadline passes, saying what was waited for.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    within_time(patience(), what, future).await
}

/// The result of `future`, within `limit`.
///
/// # Panics
/// When the deadline passes, saying what was waited for.
pub async fn within_time<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {limit:?} in vain for {what}"),
    }
}

/// Returns once `condition` holds; looks every 20 ms.
///
/// # Panics
/// When it does not hold within [`patience`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(patience(), what, condition).await;
}

/// Returns once `condition` holds; looks every 20 ms.
///
/// # Panics
/// When it does not hold within `limit`.
pub async fn eventually_within(limit: Duration, what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(holds_within(limit, condition).await, "waited {limit:?} in vain until {what}");
}

/// Whether `condition` came to hold within `limit`: for what a later check reports better than a time-out.
pub async fn holds_within(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let mut tick = ticks(POLL);
    let looks = async {
        loop {
            tick.tick().await;
            if condition().await {
                return;
            }
        }
    };
    timeout(limit, looks).await.is_ok()
}

/// Lets time pass for a client that backs off and for the length of a fault, which are what is tested; never in the hope
/// that something has happened by then.
pub async fn pause(duration: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + duration).await;
}

/// A metronome for retries: the first tick is at once, a late one does not cause a burst.
#[must_use]
pub fn ticks(period: Duration) -> tokio::time::Interval {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
