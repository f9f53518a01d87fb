//! How long `sub` waits before the next attempt: exponential with full jitter (AWS Architecture Blog, "Exponential Backoff
//! And Jitter"), so that clients which lost their connections together do not reconnect together. There is no clock and no
//! randomness in here.

use std::time::Duration;

/// The ceiling of the first wait.
const FIRST: Duration = Duration::from_millis(200);
/// The highest ceiling of a later wait.
const LAST: Duration = Duration::from_secs(10);

/// Counts the attempts that failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// The next wait: 32 random bits choose it evenly between zero and the ceiling.
    pub(crate) fn next(&mut self, random: u32) -> Duration {
        // 200 ms * 2^6 is more than 10 s, so a larger exponent changes nothing.
        let ceiling = (FIRST * 2_u32.pow(self.failed.min(6))).min(LAST);
        self.failed = self.failed.saturating_add(1);
        ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// The last attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_to_ten_seconds_and_starts_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next(0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), FIRST);
    }
}
