//! Commands that clients post, because they cannot send over the session's own connection. Any node takes a post; the
//! session's shard executes them; their replies go back to the shard that took the post, which answers the HTTP
//! request. Commands and replies travel as control messages, also within one node, so that both cases are handled
//! alike.
//!
//! ```text
//! transport::post ─► Shard::post ── Command ──► State::on_command ─► State::command, one by one
//!                    Posts::end_wait ◄── Reply ── State::send_reply ◄── State::reply_to_post
//! ```

use super::{
    SessionRef, Shard, State,
    conn::Timer,
    posts::{Destination, PostStep, Unanswered},
    reply_to::ReplyTo,
};
use crate::protocol::{
    address::PostAddress,
    control::{CommandReply, ControlMessage, PostedCommands, ReplyAddress, commands},
    error::{ErrorCode, Refusal},
};
use bytes::Bytes;
use fanfare_broker::{BrokerError, NodeId, NodeTarget};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// At most this many posts of one shard wait because no node is subscribed under the id in their address. Clients can
/// easily invent addresses, so the limit is low.
const LOOKUPS_MAX: usize = 64;
/// How long these posts wait, because the node's connection to the backplane may have broken. After that the session
/// counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// The time between two attempts to reach the node.
const GONE_LOOK: Duration = Duration::from_millis(300);
/// A command without a reply after this time is refused; a join may wait as long as the backplane is away, or until its
/// client reads.
const LATE_MS: u32 = 6_000;
/// How long the shard that took a post waits for the replies: longer than [`LATE_MS`], so that the replies come before
/// it gives up.
const PATIENCE: Duration = Duration::from_secs(8);

/// A post that waits for its reply. Dropped when the wait is over: the client may have gone before the reply came.
struct Expected<'a> {
    shard: &'a Shard,
    ticket: u64,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.shard.state.borrow_mut().posts.end_wait(self.ticket, None);
    }
}

// --- the shard that took the post ---

impl Shard {
    /// Sends posted commands to the session's own shard, and waits for the replies. [`Refusal::session_gone`] if there
    /// is no such session; the broker's error if its node cannot be reached.
    pub(crate) async fn post(&self, address: PostAddress, body: Bytes) -> Result<Bytes, Refusal> {
        if let Some(reply) = self.try_post(address, body.clone()).await? {
            return reply;
        }
        if address.node == self.node.id {
            return Err(Refusal::session_gone());
        }
        // No node is subscribed under that id at present.
        let lookup = Rc::clone(&self.lookups);
        if Rc::strong_count(&lookup) > LOOKUPS_MAX {
            return Err(BrokerError::Overloaded.into());
        }
        let gone = Instant::now() + GONE_AFTER;
        while Instant::now() < gone {
            tokio::time::sleep(GONE_LOOK).await;
            if let Some(reply) = self.try_post(address, body.clone()).await? {
                return reply;
            }
        }
        Err(Refusal::session_gone())
    }

    /// One attempt; `None` if no node is subscribed under the address's id, or the node has no such shard.
    async fn try_post(&self, address: PostAddress, body: Bytes) -> Result<Option<Result<Bytes, Refusal>>, Refusal> {
        let is_here = address.node == self.node.id;
        let destination = if is_here { Destination::ThisNode } else { Destination::OtherNode };
        let (ticket, reply) = self.state.borrow_mut().posts.expect(destination, body.len())?;
        let _expected = Expected { shard: self, ticket };
        let back = ReplyAddress { node: self.node.id, shard: self.me.0, ticket };
        let command = ControlMessage::Command(PostedCommands { address, back, body });
        if !self.send_control(address.node, address.shard, &command).await? {
            return Ok(None);
        }
        let reply = tokio::time::timeout(PATIENCE, reply).await.ok().and_then(Result::ok);
        Ok(Some(match reply {
            Some(Ok(text)) => Ok(text),
            Some(Err(ErrorCode::SessionGone)) => Err(Refusal::session_gone()),
            Some(Err(_)) => Err(BrokerError::Overloaded.into()),
            None => Err(BrokerError::Unavailable.into()),
        }))
    }

    /// Sends a control message to one shard of a node; `false` if there is no such shard here, or no such node.
    async fn send_control(&self, node: NodeId, shard: u16, message: &ControlMessage) -> Result<bool, BrokerError> {
        if node != self.node.id {
            return self.node.broker.send_control(NodeTarget::One(node), message.encode()).await;
        }
        Ok(self.node.send_to_shard(shard, message.encode()))
    }
}

// --- the session's shard ---

impl State {
    /// Begins the commands that were posted for a session of this shard.
    pub(super) fn on_command(&mut self, command: PostedCommands) {
        let PostedCommands { address, back, body } = command;
        let session = SessionRef::from_u64(address.slot);
        let conn = self.outgoing.sessions.get_open(session);
        let secret = conn.and_then(|conn| conn.stream.as_ref()).map(|stream| stream.secret);
        if !secret.is_some_and(|secret| secret.is(&address.secret)) {
            return self.send_reply(back, Err(ErrorCode::SessionGone));
        }
        // The node that took the post has checked the body; a node of another version may have checked it by other
        // rules.
        let Some((commands, is_array)) = std::str::from_utf8(&body).ok().and_then(|body| commands(body).ok()) else {
            return self.send_reply(back, Err(ErrorCode::Internal));
        };
        match self.posts.insert(session, back, commands, is_array) {
            Some(first) => {
                self.file(Timer::Post(first), LATE_MS);
                self.continue_post(first);
            }
            None => self.send_reply(back, Err(ErrorCode::BackplaneOverloaded)),
        }
    }

    /// Begins a post's next commands, up to a join that has to wait.
    fn continue_post(&mut self, first: u32) {
        while let Some((reply_to, text)) = self.posts.next_command(first) {
            let joins = self.command(reply_to, text.get());
            if joins && self.posts.wait_for_last(first) {
                return;
            }
        }
    }

    /// Replies to one posted command. The reply to the last one sends them all.
    pub(super) fn reply_to_post(&mut self, reply_to: ReplyTo, text: Vec<u8>) {
        match self.posts.reply(reply_to, text) {
            Some(PostStep::Finish(back, text)) => self.send_reply(back, Ok(text)),
            // In a task, because the caller is in the middle of a step.
            Some(PostStep::Continue(first)) => {
                self.spawn(|shard| async move { shard.state.borrow_mut().continue_post(first) });
            }
            None => {} // other replies are missing, and their commands have begun
        }
    }

    /// Answers a post that has waited too long. Commands that have begun may still be executed.
    pub(super) fn give_up_post(&mut self, first: u32) {
        let conn = self.posts.session(first).and_then(|session| self.outgoing.sessions.get_open(session));
        let is_behind = conn.is_some_and(|conn| conn.outbox.is_half_full(&self.node.outbox_limits));
        let refusal = |unanswered| match unanswered {
            Unanswered::NotBegun => {
                let before = "not executed: a join before it in the post has taken too long";
                Refusal::new(ErrorCode::NotExecuted, before)
            }
            Unanswered::Join if is_behind => {
                let unread = "the client has not read what came before; the join goes on when it has";
                Refusal::new(ErrorCode::TooSlow, unread)
            }
            Unanswered::Join | Unanswered::UnderWay => BrokerError::Unavailable.into(),
        };
        if let Some((back, text)) = self.posts.give_up(first, refusal) {
            self.send_reply(back, Ok(text));
        }
    }

    /// Answers the posts for a session that ends. Commands that have not begun are not executed.
    pub(super) fn cancel_posts(&mut self, session: SessionRef) {
        for first in self.posts.of_session(session) {
            if let Some((back, text)) = self.posts.give_up(first, |_| Refusal::session_gone()) {
                self.send_reply(back, Ok(text));
            }
        }
    }

    /// Sends the reply to a post back to the shard that took it.
    pub(super) fn send_reply(&self, back: ReplyAddress, reply: CommandReply) {
        let message = ControlMessage::Reply { shard: back.shard, ticket: back.ticket, reply };
        if back.node == self.node.id {
            self.node.send_to_shard(back.shard, message.encode());
        } else {
            // If the message is lost, the shard that waits gives up by itself.
            drop(self.node.broker.send_control(NodeTarget::One(back.node), message.encode()));
        }
    }
}
