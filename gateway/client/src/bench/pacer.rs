//! The thread that wakes publishers by the clock. It is a thread because the runtime's timers are a millisecond coarse,
//! which is more than the latency to be measured. It sleeps and notifies, and does nothing else.

use super::options::Pace;
use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The shortest step: messages that are due within one step go out together.
const STEP_MIN: Duration = Duration::from_micros(200);
/// How much too early a publisher is woken. It then waits for the exact time itself, because the time that two threads take
/// to wake up is not the gateway's latency.
const LEAD: Duration = Duration::from_micros(200);
/// Above this many messages a second a publisher would be waiting all the time, so there is no lead.
const LEAD_RATE_MAX: f64 = 1000.0;

/// How much too early publishers are woken at this pace.
pub(super) fn lead(pace: Pace) -> Duration {
    match pace {
        Pace::Rate(rate) if rate <= LEAD_RATE_MAX => LEAD,
        Pace::Rate(_) | Pace::InFlight(_) => Duration::ZERO,
    }
}

/// Starts the thread, together with the publishing. It ends when the result is dropped; without a rate there is none.
pub(super) fn start(pace: Pace, wakers: Vec<Arc<Notify>>) -> io::Result<Arc<()>> {
    let alive = Arc::new(());
    let Pace::Rate(rate) = pace else { return Ok(alive) };
    let step = Duration::from_secs_f64(1.0 / rate).max(STEP_MIN);
    let watch = Arc::downgrade(&alive);
    let begun = Instant::now();
    let run = move || {
        let mut steps = 0_u32;
        while watch.strong_count() > 0 {
            wakers.iter().for_each(|waker| waker.notify_one());
            steps = steps.saturating_add(1);
            // 10 µs after the time: a publisher that is woken just before it would wait for the next step.
            let due = begun + step.mul_f64(f64::from(steps)) + Duration::from_micros(10) - lead(pace);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    };
    thread::Builder::new().name("pacer".to_owned()).spawn(run)?;
    Ok(alive)
}
