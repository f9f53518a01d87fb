//! What clients ask for, independent of the protocol and transport. `native` decodes commands, `session` checks rights and
//! limits, `shard` executes them. A command borrows from the bytes it was read from: nothing is copied before it is allowed.

use fanfare_broker::{Cursor, SessionId};
use smallvec::SmallVec;
use std::borrow::Cow;

/// The client's own number for a command, repeated in the reply; at most [`REQUEST_ID_MAX`].
pub(crate) type RequestId = Option<u64>;

/// One command and its number.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) id: RequestId,
    pub(crate) request: Request<'a>,
}

/// What a command asks for.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Join { room: Cow<'a, str>, options: JoinOptions },
    Leave { room: Cow<'a, str> },
    Publish(PublishRequest<'a>),
    Presence { room: Cow<'a, str> },
    History { room: Cow<'a, str>, since: Option<Cursor>, limit: usize },
    Auth,
    Ping,
}

impl<'a> Request<'a> {
    /// The room that it names.
    pub(crate) fn into_room(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Join { room, .. } | Self::Leave { room } | Self::Presence { room } | Self::History { room, .. } => {
                Some(room)
            }
            Self::Publish(request) => Some(request.room),
            Self::Auth | Self::Ping => None,
        }
    }
}

/// A message to publish, before any check.
#[derive(Debug)]
pub(crate) struct PublishRequest<'a> {
    pub(crate) room: Cow<'a, str>,
    /// Valid JSON text, with the white space that the publisher wrote.
    pub(crate) data: &'a str,
    pub(crate) event: Option<Cow<'a, str>>,
    pub(crate) key: Option<Cow<'a, str>>,
}

/// The options of a join.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct JoinOptions {
    /// Resume after this cursor.
    pub(crate) since: Option<Cursor>,
    /// Without `since`: how many of the latest messages to send first.
    pub(crate) last: usize,
    /// Whether the member gets the list of members and their joins and leaves.
    pub(crate) wants_presence: bool,
    /// Sessions whose messages are not delivered to this member.
    pub(crate) exclude: SmallVec<[SessionId; 1]>,
    /// Whether the member's own messages are not delivered to it either.
    pub(crate) skips_own: bool,
}

/// The most sessions that a join may exclude: its own earlier ones.
pub(crate) const EXCLUDE_MAX: usize = 8;
/// The longest event name, in bytes.
pub(crate) const EVENT_BYTES_MAX: usize = 64;
/// The most messages in one history reply.
pub(crate) const HISTORY_LIMIT_MAX: usize = 300;
/// Messages in a history reply if the request has no `limit`.
pub(crate) const HISTORY_LIMIT: usize = 100;
/// The largest request id, 2^53: every JSON reader keeps integers up to here exactly (RFC 8259 section 6).
pub(crate) const REQUEST_ID_MAX: u64 = 1 << 53;
