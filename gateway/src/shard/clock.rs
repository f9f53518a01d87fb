//! A shard's clock: milliseconds since the shard started. Deadlines of sessions and rooms are times of this clock: four
//! bytes each, where an `Instant` has sixteen.

use std::time::Instant;

/// Counts milliseconds since its start. Monotonic: a change of the system's time does not move it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// The time. It wraps after 49 days, so times are subtracted or compared by [`is_past`], never by `<`.
    pub(super) fn now_ms(self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }
}

/// Whether a deadline has come.
pub(super) fn is_past(due_ms: u32, now_ms: u32) -> bool {
    now_ms.wrapping_sub(due_ms) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_compared_across_the_wrap_of_the_clock() {
        assert!(is_past(5, 5) && is_past(5, 6) && !is_past(6, 5));
        assert!(is_past(u32::MAX, 3) && !is_past(3, u32::MAX));
    }
}
