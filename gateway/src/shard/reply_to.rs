//! Who sent a command and where its reply goes. [`PublishTicket`] takes that through the broker, which hands a
//! publish's ticket back with the result.

use super::conn::SessionRef;
use crate::protocol::command::RequestId;
use fanfare_broker::Ticket;
use std::num::NonZeroU32;

/// The number of a posted command's reply, on one shard; the commands of one post have consecutive numbers.
pub(super) type ReplyNumber = NonZeroU32;

/// The session that sent a command, and where the reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyTo {
    pub(super) session: SessionRef,
    pub(super) id: RequestId,
    /// Set if the command was posted: its reply goes into the post's response, under this number.
    pub(super) post: Option<ReplyNumber>,
}

impl ReplyTo {
    /// For a request without an id: a room of the session's URL, a command that is not decoded yet, or one that is
    /// answered already.
    pub(super) fn without_id(session: SessionRef) -> Self {
        Self { session, id: None, post: None }
    }
}

/// Stands for a command without an id; ids end at 2^53.
const NO_ID: u64 = u64::MAX;

/// A publish on its way through the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublishTicket {
    pub(super) reply_to: ReplyTo,
    /// When it was handed to the broker, by the shard's clock.
    pub(super) began_ms: u32,
}

impl PublishTicket {
    /// As the broker carries it: the session; the command's id; the reply's number (0: not posted) above the time.
    pub(super) fn encode(self) -> Ticket {
        let Self { reply_to: ReplyTo { session, id, post }, began_ms } = self;
        let post = post.map_or(0, |number| u64::from(number.get()));
        Ticket([session.to_u64(), id.unwrap_or(NO_ID), post << 32 | u64::from(began_ms)])
    }

    pub(super) fn decode(Ticket([session, id, post_and_time]): Ticket) -> Self {
        let reply_to = ReplyTo {
            session: SessionRef::from_u64(session),
            id: Some(id).filter(|id| *id != NO_ID),
            post: ReplyNumber::new((post_and_time >> 32) as u32),
        };
        Self { reply_to, began_ms: post_and_time as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_ticket_survives_its_way_through_the_broker() {
        let session = SessionRef { index: 7, generation: u32::MAX };
        for (id, post) in [(None, None), (Some(0), ReplyNumber::new(1)), (Some(1 << 53), ReplyNumber::new(u32::MAX))] {
            let ticket = PublishTicket { reply_to: ReplyTo { session, id, post }, began_ms: u32::MAX };
            assert_eq!(PublishTicket::decode(ticket.encode()), ticket);
        }
    }
}
