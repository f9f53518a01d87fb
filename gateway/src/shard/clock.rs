//! A shard's clock, in milliseconds since the shard started, and its timer wheel. Deadlines of sessions and rooms are
//! times of this clock: four bytes each, where an `Instant` has sixteen.

use std::time::Instant;

/// Milliseconds per slot: how late a ping or a deadline may be.
pub(super) const TICK_MS: u32 = 250;
/// Slots, so the horizon is 32 s. An entry that is due later comes out at the horizon, and its owner files it again.
const SLOTS: usize = 128;

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

/// Entries by the tick at which they are due: a session costs one entry of 16 bytes, not a timer of its own. The caller
/// turns the wheel once per tick.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    slots: Vec<Vec<T>>,
    /// The present tick.
    tick: u64,
    len: usize,
}

impl<T> Wheel<T> {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), tick: 0, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Files `entry` to come out after `after_ms`, rounded up to a tick; at most the horizon.
    pub(super) fn file(&mut self, entry: T, after_ms: u32) {
        let ticks = u64::from(after_ms.div_ceil(TICK_MS)).clamp(1, SLOTS as u64 - 1);
        let slot = (self.tick + ticks) as usize % SLOTS;
        self.slots[slot].push(entry);
        self.len += 1;
    }

    /// Turns by one tick and moves what is due into `due`.
    pub(super) fn turn(&mut self, due: &mut Vec<T>) {
        self.tick += 1;
        let slot = &mut self.slots[self.tick as usize % SLOTS];
        self.len -= slot.len();
        due.append(slot);
        if slot.capacity() > 64 {
            *slot = Vec::new(); // a burst of connects leaves no large slots behind
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_compared_across_the_wrap_of_the_clock() {
        assert!(is_past(5, 5) && is_past(5, 6) && !is_past(6, 5));
        assert!(is_past(u32::MAX, 3) && !is_past(3, u32::MAX));
    }

    #[test]
    fn entries_come_out_once_at_their_tick() {
        let mut wheel = Wheel::new();
        for (entry, after) in [(0, 0), (1, 250), (2, 251), (3, 31_750), (4, 1_000_000)] {
            wheel.file(entry, after);
        }
        let mut seen = vec![];
        for tick in 1..=SLOTS {
            let mut due = vec![];
            wheel.turn(&mut due);
            seen.extend(due.into_iter().map(|entry| (entry, tick)));
        }
        assert_eq!(seen, [(0, 1), (1, 1), (2, 2), (3, 127), (4, 127)]);
        assert!(wheel.is_empty());
    }
}
