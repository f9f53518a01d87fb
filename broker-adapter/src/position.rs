//! `Position`: the last message that one consumer of one room has had, and what the next message means to it. Pure: no
//! I/O, no clock.

use crate::Cursor;

/// The last message that a consumer of a room with history has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(Cursor);

/// What a message, or a head, means to a consumer at a [`Position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next message.
    InSequence,
    /// The consumer has had it.
    Old,
    /// Messages in between are missing: the consumer reads history after `since` before anything later.
    Hole {
        /// The position's cursor.
        since: Cursor,
    },
}

impl Position {
    /// The position of a consumer that has had everything up to `cursor`.
    #[must_use]
    pub fn at(cursor: Cursor) -> Self {
        Self(cursor)
    }

    /// The cursor of the last message.
    #[must_use]
    pub fn cursor(self) -> Cursor {
        self.0
    }

    /// Judges a live message.
    #[must_use]
    pub fn of_message(self, message: Cursor) -> Verdict {
        if message.epoch != self.0.epoch {
            return Verdict::Hole { since: self.0 };
        }
        match message.offset {
            o if o == self.0.offset.next() => Verdict::InSequence,
            o if o <= self.0.offset => Verdict::Old,
            _ => Verdict::Hole { since: self.0 },
        }
    }

    /// Judges the room's head. A head of the same epoch *behind* the position means that the backplane has forgotten
    /// messages which were delivered, so it counts as a hole too.
    #[must_use]
    pub fn of_head(self, head: Cursor) -> Verdict {
        if head == self.0 { Verdict::Old } else { Verdict::Hole { since: self.0 } }
    }

    /// Moves to `cursor`, whatever lies between.
    pub fn move_to(&mut self, cursor: Cursor) {
        self.0 = cursor;
    }

    /// Whether the consumer has had the message at `cursor`: same epoch, and not after the position.
    #[must_use]
    pub fn covers(self, cursor: Cursor) -> bool {
        cursor.epoch == self.0.epoch && cursor.offset <= self.0.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Offset};
    use proptest::prelude::*;

    fn cursor(epoch: &[u8; 8], offset: u64) -> Cursor {
        Cursor::new(Epoch::from_bytes(*epoch).unwrap(), Offset(offset))
    }

    #[test]
    fn a_new_epoch_is_a_hole_even_at_the_next_offset() {
        let at = Position::at(cursor(b"aaaaaaaa", 4));
        assert_eq!(at.of_message(cursor(b"bbbbbbbb", 5)), Verdict::Hole { since: at.cursor() });
        assert_eq!(at.of_head(cursor(b"aaaaaaaa", 3)), Verdict::Hole { since: at.cursor() });
        assert_eq!(at.of_head(at.cursor()), Verdict::Old);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever arrives in whatever order, a consumer that follows the verdicts has each offset once, in order.
        #[test]
        fn following_the_verdicts_delivers_every_offset_once(arrivals in proptest::collection::vec(1u64..60, 0..200)) {
            let mut at = Position::at(cursor(b"aaaaaaaa", 0));
            let mut seen = Vec::new();
            for offset in arrivals {
                let message = cursor(b"aaaaaaaa", offset);
                match at.of_message(message) {
                    Verdict::InSequence => seen.push(offset),
                    Verdict::Old => prop_assert!(seen.contains(&offset)),
                    Verdict::Hole { since } => seen.extend(since.offset.0 + 1..=offset),
                }
                if !at.covers(message) { at.move_to(message); }
            }
            prop_assert!(seen.iter().copied().eq(1..=seen.len() as u64));
        }
    }
}
