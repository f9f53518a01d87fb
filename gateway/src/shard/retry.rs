//! The wait between two attempts of a join or a catch-up when the broker fails. It never gives up: the caller knows
//! whether the room is still wanted.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// Waits longer each time: from 100 ms, doubling to 2 s.
#[derive(Debug)]
pub(super) struct Retry {
    next: Duration,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// An attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// An attempt failed: waits before the next one.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }

    fn step(&mut self) -> Duration {
        let later = (self.next * 2).min(LAST);
        std::mem::replace(&mut self.next, later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_two_seconds_and_starts_again() {
        let mut retry = Retry::new();
        let waits: Vec<_> = (0..7).map(|_| retry.step().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        retry.reset();
        assert_eq!(retry.step(), FIRST);
    }
}
