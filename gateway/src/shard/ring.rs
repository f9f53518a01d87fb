//! The last few messages of one room, for clients that resume: what a client missed is read from here, if the ring
//! reaches back far enough, and not from the broker.

use fanfare_broker::{Cursor, Position, Publication};
use std::collections::VecDeque;

/// Messages that are kept of one room.
const MESSAGES_MAX: usize = 64;

/// Messages of one room in sequence, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ring {
    publications: VecDeque<Publication>,
    /// Bytes of their payloads.
    bytes: usize,
}

impl Ring {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the newest message was published, in milliseconds since 1970.
    pub(super) fn last_ts_ms(&self) -> Option<u64> {
        self.publications.back().map(|publication| publication.ts_ms)
    }

    /// Keeps a message; one that does not follow the newest replaces them all. A message of a room without history has
    /// no cursor and is not kept.
    pub(super) fn push(&mut self, publication: Publication) {
        let Some(cursor) = publication.cursor else { return };
        let last = self.publications.back().and_then(|last| last.cursor);
        if last.is_some_and(|last| last.epoch != cursor.epoch || last.offset.next() != cursor.offset) {
            self.publications.clear();
            self.bytes = 0;
        }
        self.bytes += publication.payload.len();
        self.publications.push_back(publication);
        if self.publications.len() > MESSAGES_MAX {
            self.bytes -= self.publications.pop_front().map_or(0, |oldest| oldest.payload.len());
        }
    }

    /// The messages after `since`; `None` if the ring does not reach back that far, or does not reach up to `position`,
    /// where the room's feed stands: after a gap the ring lacks messages that the feed has passed over.
    pub(super) fn after(&self, since: Cursor, position: Position) -> Option<impl Iterator<Item = &Publication>> {
        let (first, last) = (self.publications.front()?.cursor?, self.publications.back()?.cursor?);
        if position.cursor() != last || first.epoch != since.epoch {
            return None;
        }
        // `since` is the client's, so its offset may be any number.
        let skip = since.offset.0.checked_add(1)?.checked_sub(first.offset.0)?;
        Some(self.publications.iter().skip(skip as usize))
    }
}
