//! `Feed`: how one room's messages reach this shard without holes. Sans-I/O: messages, heads and history pages in;
//! what to deliver, and whether to read history, out. The shard obeys; members never see a hole that is not a `gap`.

use fanfare_broker::{Cursor, Epoch, Offset, Page, Position, Publication, Verdict};

/// Keepalive messages held while history is read: beyond this the rest is read from history too.
const HELD_MAX: usize = 1024;
/// Their payload bytes.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Where the shard stands in a room.
#[derive(Debug)]
pub(crate) enum Feed {
    /// The broker has not confirmed yet; what comes early is only noted.
    Subscribing { seen: Option<Cursor> },
    /// A room without history: everything is passed on.
    Unnumbered,
    /// In sequence.
    Keepalive(Position),
    /// A hole is being read from history; what comes meanwhile is held.
    CatchingUp { at: Position, held: Held },
}

/// Keepalive messages that wait for a hole to be filled.
#[derive(Debug, Default)]
pub(crate) struct Held {
    publications: Vec<Publication>,
    bytes: usize,
    /// Some did not fit: history has to be read once more.
    overflowed: bool,
}

/// What to do with a live message.
#[derive(Debug)]
pub(crate) enum Step {
    Deliver(Publication),
    Nothing,
    /// Read history after this place and hand the page to [`Feed::on_page`].
    CatchUp(Cursor),
}

/// What a page of history comes to.
#[derive(Debug)]
pub(crate) struct Filled {
    /// Messages are gone: members are told, with the places before and after.
    pub(crate) gap: Option<(Cursor, Cursor)>,
    pub(crate) deliver: Vec<Publication>,
    /// Read on from here.
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
            Self::Keepalive(at) | Self::CatchingUp { at, .. } => Some(*at),
        }
    }

    pub(crate) fn is_subscribing(&self) -> bool {
        matches!(self, Self::Subscribing { .. })
    }

    /// The broker confirmed: from `head` on everything is delivered.
    pub(crate) fn on_subscribed(&mut self, head: Option<Cursor>) -> Step {
        let Self::Subscribing { seen } = *self else { return Step::Nothing };
        let Some(head) = head else {
            *self = Self::Unnumbered;
            return Step::Nothing;
        };
        let at = Position::at(head);
        *self = Self::Keepalive(at);
        // Something after the head came before the confirmation was seen here, and was only noted.
        match seen {
            Some(seen) if !at.covers(seen) => self.catch_up(at),
            _ => Step::Nothing,
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
            Self::Keepalive(at) => match at.of_message(cursor) {
                Verdict::InSequence => {
                    at.move_to(cursor);
                    Step::Deliver(publication)
                }
                Verdict::Old => Step::Nothing,
                Verdict::Hole { .. } => {
                    let at = *at;
                    let step = self.catch_up(at);
                    self.hold(publication);
                    step
                }
            },
            Self::CatchingUp { .. } => {
                self.hold(publication);
                Step::Nothing
            }
        }
    }

    /// The room's head after a reconnect, or as a history page told it.
    pub(crate) fn on_head(&mut self, head: Cursor) -> Step {
        match self {
            Self::Keepalive(at) => match at.of_head(head) {
                Verdict::Hole { .. } => {
                    let at = *at;
                    self.catch_up(at)
                }
                Verdict::InSequence | Verdict::Old => Step::Nothing,
            },
            Self::CatchingUp { held, .. } => {
                held.overflowed = true;
                Step::Nothing
            }
            Self::Subscribing { .. } | Self::Unnumbered => Step::Nothing,
        }
    }

    /// Messages of this room may have been dropped.
    pub(crate) fn on_behind(&mut self) -> Step {
        match self {
            Self::Keepalive(at) => {
                let at = *at;
                self.catch_up(at)
            }
            Self::CatchingUp { held, .. } => {
                held.overflowed = true;
                Step::Nothing
            }
            Self::Subscribing { seen } => {
                // No head covers it: the confirmation will be followed by a look at history.
                *seen = Some(Cursor::new(Epoch::FOREIGN, Offset(0)));
                Step::Nothing
            }
            Self::Unnumbered => Step::Nothing,
        }
    }

    /// The page that was read after [`Step::CatchUp`] or [`Filled::again`].
    pub(crate) fn on_page(&mut self, page: Page) -> Filled {
        let Self::CatchingUp { at, held } = self else { return Filled { gap: None, deliver: vec![], again: None } };
        let gap = page.gap.map(|_| (at.cursor(), page.from));
        let (end, head) = (page.end(), page.head);
        let mut deliver = page.publications;
        at.move_to(end);
        if end != head {
            return Filled { gap, deliver, again: Some(end) };
        }
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
            *self = Self::Keepalive(*at);
        }
        Filled { gap, deliver, again }
    }

    fn catch_up(&mut self, at: Position) -> Step {
        *self = Self::CatchingUp { at, held: Held::default() };
        Step::CatchUp(at.cursor())
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
