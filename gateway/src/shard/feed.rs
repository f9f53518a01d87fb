//! How one room's messages reach this shard without holes. Sans-I/O: messages, heads and pages of history go in; what
//! to deliver and where to read history comes out. Members never see a hole: it is filled, or they are told a gap.

use fanfare_broker::{Cursor, Epoch, Offset, Page, Position, Publication, Verdict};
use std::ops::Range;

/// Live messages held while history is read; the others are read from history too.
const HELD_MAX: usize = 1024;
/// Their payload bytes.
const HELD_BYTES_MAX: usize = 1 << 20;

/// A room's sequence of messages, and how far this shard has come in it.
#[derive(Debug)]
pub(crate) enum Feed {
    /// The broker has not confirmed the subscription. Messages that come early are only noted.
    Subscribing { seen: Option<Cursor> },
    /// A room without history: every message is delivered as it comes.
    Unnumbered,
    /// In sequence.
    Live(Position),
    /// A hole is being read from history; live messages are held.
    CatchingUp { at: Position, held: Held },
}

/// Live messages that wait until a hole before them is filled.
#[derive(Debug, Default)]
pub(crate) struct Held {
    publications: Vec<Publication>,
    bytes: usize,
    /// Some did not fit, so history has to be read once more.
    overflowed: bool,
}

/// What to do with a live message.
#[derive(Debug)]
pub(crate) enum Step {
    Deliver(Publication),
    Nothing,
    /// Read history after this cursor and hand the page to [`Feed::on_page`].
    CatchUp(Cursor),
}

/// What a page of history fills.
#[derive(Debug)]
pub(crate) struct Filled {
    /// The messages between these cursors are lost: tell the members.
    pub(crate) gap: Option<Range<Cursor>>,
    pub(crate) deliver: Vec<Publication>,
    /// Read on after this cursor. `None`: the feed is in sequence again.
    pub(crate) again: Option<Cursor>,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self::Subscribing { seen: None }
    }

    /// The last message delivered; `None` before the subscription and in rooms without history.
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Subscribing { .. } | Self::Unnumbered => None,
            Self::Live(at) | Self::CatchingUp { at, .. } => Some(*at),
        }
    }

    pub(crate) fn is_subscribing(&self) -> bool {
        matches!(self, Self::Subscribing { .. })
    }

    /// The broker has confirmed the subscription: every message after `head` will be delivered. Returns the cursor to
    /// catch up from, as the next two methods do.
    pub(crate) fn on_subscribed(&mut self, head: Option<Cursor>) -> Option<Cursor> {
        let Self::Subscribing { seen } = *self else { return None };
        let Some(head) = head else {
            *self = Self::Unnumbered;
            return None;
        };
        let at = Position::at(head);
        *self = Self::Live(at);
        // A message after the head came before the confirmation, and was only noted.
        seen.filter(|seen| !at.covers(*seen)).map(|_| self.catch_up(at))
    }

    /// The room's head, as the broker saw it after a reconnect or as a page of history shows it.
    pub(crate) fn on_head(&mut self, head: Cursor) -> Option<Cursor> {
        match self {
            Self::Live(at) if !matches!(at.of_head(head), Verdict::Hole { .. }) => None,
            Self::Subscribing { .. } => None,
            _ => self.on_behind(),
        }
    }

    /// Messages of this room may have been dropped.
    pub(crate) fn on_behind(&mut self) -> Option<Cursor> {
        match self {
            Self::Live(at) => {
                let at = *at;
                Some(self.catch_up(at))
            }
            Self::CatchingUp { held, .. } => {
                held.overflowed = true;
                None
            }
            Self::Subscribing { seen } => {
                // No head covers this cursor, so the confirmation is followed by a look at history.
                *seen = Some(Cursor::new(Epoch::FOREIGN, Offset(0)));
                None
            }
            Self::Unnumbered => None,
        }
    }

    /// A live message.
    pub(crate) fn on_message(&mut self, publication: Publication) -> Step {
        let Some(cursor) = publication.cursor else {
            return if self.is_subscribing() { Step::Nothing } else { Step::Deliver(publication) };
        };
        match self {
            Self::Subscribing { seen } => {
                *seen = Some(cursor);
                Step::Nothing
            }
            Self::Unnumbered => Step::Deliver(publication),
            Self::Live(at) => match at.of_message(cursor) {
                Verdict::InSequence => {
                    at.move_to(cursor);
                    Step::Deliver(publication)
                }
                Verdict::Old => Step::Nothing,
                Verdict::Hole { .. } => {
                    let at = *at;
                    let since = self.catch_up(at);
                    self.hold(publication);
                    Step::CatchUp(since)
                }
            },
            Self::CatchingUp { .. } => {
                self.hold(publication);
                Step::Nothing
            }
        }
    }

    /// The page that was read to catch up.
    pub(crate) fn on_page(&mut self, page: Page) -> Filled {
        let Self::CatchingUp { at, held } = self else { return Filled { gap: None, deliver: vec![], again: None } };
        let gap = page.gap.map(|_| at.cursor()..page.from);
        let (end, head) = (page.end(), page.head);
        let mut deliver = page.publications;
        at.move_to(end);
        if end != head {
            return Filled { gap, deliver, again: Some(end) };
        }
        // History is read to its end. The held messages follow, up to the next hole if there is another.
        let mut later = std::mem::take(held);
        let mut hole = None;
        for publication in later.publications.drain(..) {
            let Some(cursor) = publication.cursor else { continue };
            match at.of_message(cursor) {
                _ if hole.is_some() => {}
                Verdict::InSequence => {
                    at.move_to(cursor);
                    deliver.push(publication);
                }
                Verdict::Old => {}
                Verdict::Hole { since } => hole = Some(since),
            }
        }
        let again = hole.or(later.overflowed.then(|| at.cursor()));
        if again.is_none() {
            *self = Self::Live(*at);
        }
        Filled { gap, deliver, again }
    }

    fn catch_up(&mut self, at: Position) -> Cursor {
        *self = Self::CatchingUp { at, held: Held::default() };
        at.cursor()
    }

    fn hold(&mut self, publication: Publication) {
        let Self::CatchingUp { held, .. } = self else { return };
        let bytes = held.bytes + publication.payload.len();
        if held.publications.len() >= HELD_MAX || bytes > HELD_BYTES_MAX {
            held.overflowed = true;
        } else if !held.overflowed {
            held.bytes = bytes;
            held.publications.push(publication);
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
