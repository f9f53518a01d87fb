//! The rate limits of a session: token buckets for publishes and for requests, a window for errors. The time comes in
//! as a parameter.

/// Lets `per_second` events through on average and twice as many in a burst. 0: no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenBucket {
    /// The tokens that are left, in thousandths.
    left: u32,
    /// When `left` was computed.
    filled_ms: u32,
}

/// The burst, as a multiple of the rate.
const BURST: u32 = 2;

impl TokenBucket {
    pub(crate) fn full(per_second: u32, now_ms: u32) -> Self {
        Self { left: capacity(per_second), filled_ms: now_ms }
    }

    /// Takes a token; the error is the number of milliseconds until the next one.
    pub(crate) fn take(&mut self, per_second: u32, now_ms: u32) -> Result<(), u64> {
        if per_second == 0 {
            return Ok(());
        }
        let elapsed = u64::from(now_ms.wrapping_sub(self.filled_ms));
        let gained = elapsed * u64::from(per_second); // thousandths: ms × tokens/s
        self.left = u32::try_from(u64::from(self.left) + gained).unwrap_or(u32::MAX).min(capacity(per_second));
        self.filled_ms = now_ms;
        if self.left >= 1000 {
            self.left -= 1000;
            return Ok(());
        }
        Err(u64::from((1000 - self.left).div_ceil(per_second)).max(1))
    }
}

fn capacity(per_second: u32) -> u32 {
    per_second.saturating_mul(1000 * BURST)
}

/// Counts errors in windows of 10 s; more than 20 in one is too many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ErrorWindow {
    count: u16,
    began_ms: u32,
}

/// Errors that a session may cause within [`WINDOW_MS`].
const ERRORS_MAX: u16 = 20;
const WINDOW_MS: u32 = 10_000;

impl ErrorWindow {
    /// Counts an error; `true` if there are too many.
    pub(crate) fn count(&mut self, now_ms: u32) -> bool {
        if self.count == 0 || now_ms.wrapping_sub(self.began_ms) > WINDOW_MS {
            *self = Self { count: 0, began_ms: now_ms };
        }
        self.count += 1;
        self.count > ERRORS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_and_then_the_rate_through() {
        let mut bucket = TokenBucket::full(50, 0);
        assert_eq!((0..200).filter(|_| bucket.take(50, 0).is_ok()).count(), 100);
        assert_eq!(bucket.take(50, 0), Err(20));
        assert_eq!(bucket.take(50, 20), Ok(()));
        assert_eq!((0..200).filter(|_| bucket.take(50, 1020).is_ok()).count(), 50);
        assert!((0..10_000).all(|_| bucket.take(0, 0).is_ok()), "0 is no limit");
    }

    #[test]
    fn the_twenty_first_error_in_ten_seconds_is_too_many() {
        let mut window = ErrorWindow::default();
        assert!((0..20).all(|i| !window.count(i * 100)));
        assert!(window.count(9_000));
        let mut window = ErrorWindow::default();
        assert!((0..20).all(|_| !window.count(0)));
        assert!(!window.count(10_001), "a new window");
    }
}
