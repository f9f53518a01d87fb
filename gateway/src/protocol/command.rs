//! What a client asks for, whatever protocol it speaks. Made by `protocol`, judged by `session`, done by `shard`.
//! Borrows from the bytes it came in: nothing is copied until it is known to be wanted.

use fanfare_broker::{Cursor, SessionId};
use smallvec::SmallVec;
use std::borrow::Cow;

/// A client's own number for a request, echoed in the answer; at most 2^53.
pub(crate) type RequestId = Option<u64>;

/// A request and its number.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) id: RequestId,
    pub(crate) ask: Ask<'a>,
}

/// What is asked.
#[derive(Debug)]
pub(crate) enum Ask<'a> {
    Join { room: Cow<'a, str>, options: JoinOptions },
    Leave { room: Cow<'a, str> },
    Publish(PublishAsk<'a>),
    Presence { room: Cow<'a, str> },
    History { room: Cow<'a, str>, since: Option<Cursor>, limit: usize },
    Auth,
    Ping,
}

/// A message to publish, as it came.
#[derive(Debug)]
pub(crate) struct PublishAsk<'a> {
    pub(crate) room: Cow<'a, str>,
    /// JSON text, valid, with whatever white space the publisher wrote.
    pub(crate) data: &'a str,
    pub(crate) event: Option<Cow<'a, str>>,
    pub(crate) key: Option<Cow<'a, str>>,
}

/// How a member wants to come in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct JoinOptions {
    /// Resume after this place.
    pub(crate) since: Option<Cursor>,
    /// Without `since`: begin with the last so many messages.
    pub(crate) last: usize,
    pub(crate) presence: PresenceWish,
    pub(crate) echo: EchoWish,
    /// Sessions whose messages stay away.
    pub(crate) exclude: SmallVec<[SessionId; 1]>,
}

/// Whether a member wants to see who comes and goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PresenceWish {
    #[default]
    No,
    Members,
}

/// Whether a member wants its own messages back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum EchoWish {
    #[default]
    Yes,
    No,
}

/// Own earlier sessions that a join may exclude.
pub(crate) const EXCLUDE_MAX: usize = 8;
/// The longest event name, in bytes.
pub(crate) const EVENT_BYTES_MAX: usize = 64;
/// Messages in one history answer: at most, and without being asked.
pub(crate) const HISTORY_LIMIT_MAX: usize = 300;
/// See [`HISTORY_LIMIT_MAX`].
pub(crate) const HISTORY_LIMIT: usize = 100;
/// The largest request number, 2^53: the largest integer that every JSON reader keeps exactly.
pub(crate) const REQUEST_ID_MAX: u64 = 1 << 53;
