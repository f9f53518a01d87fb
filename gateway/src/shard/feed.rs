//! Delivers one room's messages to this shard without holes. Sans-I/O: messages, heads (the cursor of a room's latest
//! message) and pages of history go in; what to deliver and where to read history comes out. A hole is filled from
//! history, or members are told of a gap.

use fanfare_broker::{Cursor, Epoch, Gap, Offset, Page, Position, Publication, Verdict};
use std::ops::Range;

/// At most this many live messages are held while history is read; later ones are dropped and read from history.
const HELD_MAX: usize = 1024;
/// The limit of their payload bytes together.
const HELD_BYTES_MAX: usize = 256 << 10;

/// A room's sequence of messages, and how far this shard has come in it.
#[derive(Debug)]
pub(crate) enum Feed {
    /// The broker has not confirmed the subscription. Of messages that come early, only the last cursor is kept.
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
    /// Messages may be missing after those held, so history has to be read once more.
    read_again: bool,
}

/// What to do with a live message.
#[derive(Debug)]
pub(crate) enum Step {
    Deliver(Publication),
    Nothing,
    /// Read history after this cursor and hand the page to [`Feed::on_page`].
    CatchUp(Cursor),
}

/// The result of a page of history.
#[derive(Debug)]
pub(crate) struct Filled {
    /// The messages between these cursors are lost: the members get a gap.
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
        // A message after the head came before the confirmation, and was not kept.
        seen.filter(|seen| !at.covers(*seen)).map(|_| self.catch_up(at))
    }

    /// The room's head, from a comparison after a reconnect, from a sweep, or from a page of history. A head that is
    /// not our position shows that messages are missing here, or that the backplane has lost some.
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
                held.read_again = true;
                None
            }
            Self::Subscribing { seen } => {
                // A cursor of an epoch that no room has, so that `on_subscribed` starts a catch-up.
                *seen = Some(Cursor::new(Epoch::FOREIGN, Offset(0)));
                None
            }
            Self::Unnumbered => None,
        }
    }

    /// Decides whether a live message is delivered now, dropped as a repeat, or held because others are missing before
    /// it.
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

    /// Takes a page that was read to catch up, and at the end of history the held messages that follow in sequence.
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
                _ if hole.is_some() => {} // dropped: the next page of history has it
                Verdict::InSequence => {
                    at.move_to(cursor);
                    deliver.push(publication);
                }
                Verdict::Old => {}
                Verdict::Hole { since } => hole = Some(since),
            }
        }
        let again = hole.or(later.read_again.then(|| at.cursor()));
        if again.is_none() {
            *self = Self::Live(*at);
        }
        Filled { gap, deliver, again }
    }

    /// History cannot be read. What was missed is lost; the messages that were held follow.
    pub(crate) fn give_up(&mut self) -> Filled {
        let Self::CatchingUp { at, held } = self else { return Filled { gap: None, deliver: vec![], again: None } };
        let before = |first: Cursor| Cursor::new(first.epoch, Offset(first.offset.0.saturating_sub(1)));
        let first = held.publications.first().and_then(|publication| publication.cursor).map(before);
        held.read_again = false;
        let from = first.unwrap_or(at.cursor());
        self.on_page(Page { publications: Vec::new(), from, head: from, gap: first.map(|_| Gap { missed: None }) })
    }

    fn catch_up(&mut self, at: Position) -> Cursor {
        *self = Self::CatchingUp { at, held: Held::default() };
        at.cursor()
    }

    fn hold(&mut self, publication: Publication) {
        let Self::CatchingUp { held, .. } = self else { return };
        let bytes = held.bytes + publication.payload.len();
        if held.publications.len() >= HELD_MAX || bytes > HELD_BYTES_MAX {
            held.read_again = true;
        } else if !held.read_again {
            held.bytes = bytes;
            held.publications.push(publication);
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
