//! The posts of one shard: posts for its own sessions, until every command has its reply; and posts that it has taken
//! from clients, until the session's shard has answered. Data; `posted` moves the messages.

use super::{
    conn::SessionRef,
    reply_to::{ReplyNumber, ReplyTo},
};
use crate::protocol::{
    control::{CommandReply, ReplyAddress},
    error::{ErrorCode, Refusal},
    event::Event,
    native,
};
use bytes::Bytes;
use fanfare_broker::BrokerError;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, hash_map::Entry},
};
use tokio::sync::oneshot;

/// At most this many posts for the sessions of one shard, and as many that one shard has taken from clients.
const POSTS_MAX: usize = 4096;
/// At most this many of them for one session.
const POSTS_OF_SESSION_MAX: u32 = 64;
/// At most this many bytes of replies to one post. Histories and member lists that exceed it are refused.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// A reply up to this size is never refused, so that the client learns the result of every command.
const REPLY_BYTES_SMALL: usize = 4 << 10;

/// Where the session of a post is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    ThisNode,
    OtherNode,
}

impl Destination {
    /// At most this many bytes of posted bodies wait for replies. The limit is lower for other nodes, because all of
    /// these posts may go to one node, and Redis closes a subscriber's connection when 32 MiB wait for it (its
    /// default).
    const fn bytes_max(self) -> usize {
        match self {
            Self::ThisNode => 64 << 20,
            Self::OtherNode => 4 << 20,
        }
    }
}

/// Posts of one shard, in both roles.
#[derive(Default)]
pub(super) struct Posts {
    /// Posts for this shard's sessions, by the number of their first reply.
    under_way: BTreeMap<u32, Post>,
    /// How many of them each session has, by its index.
    of_sessions: HashMap<u32, u32>,
    numbers: u32,
    /// Posts taken from clients, by ticket.
    awaited: HashMap<u64, Awaited>,
    /// The bytes of their bodies, by [`Destination`].
    awaited_bytes: [usize; 2],
    tickets: u64,
}

/// A post that was taken from a client.
struct Awaited {
    destination: Destination,
    bytes: usize,
    reply: oneshot::Sender<CommandReply>,
}

/// A post for a session of this shard.
struct Post {
    session: SessionRef,
    back: ReplyAddress,
    is_array: bool,
    commands: Vec<Box<RawValue>>,
    replies: Vec<Option<Vec<u8>>>,
    missing: usize,
    /// Bytes of the replies.
    bytes: usize,
    /// How many commands have begun. The others wait until a join before them is complete, so that a client which joins
    /// and publishes in one post receives its own message.
    begun: usize,
    /// The index of that join.
    waits_for: Option<usize>,
}

/// What a post needs after a reply to one of its commands.
pub(super) enum PostStep {
    /// The join that the next commands of the post with this first number waited for is complete.
    Continue(u32),
    /// Every command has its reply: the text goes back.
    Finish(ReplyAddress, Bytes),
}

/// How far a command without a reply has come when its post is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    NotBegun,
    /// It is the join for whose reply the next commands wait.
    Join,
    UnderWay,
}

/// The fields of a command that its reply repeats.
#[derive(Default, Deserialize)]
struct Heading<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    room: Option<Cow<'a, str>>,
}

impl Posts {
    // --- posts taken from clients ---

    /// Begins to wait for a reply to a post whose body has this many bytes; its ticket and the receiver.
    pub(super) fn expect(
        &mut self,
        destination: Destination,
        bytes: usize,
    ) -> Result<(u64, oneshot::Receiver<CommandReply>), BrokerError> {
        let waiting = &mut self.awaited_bytes[destination as usize];
        if self.awaited.len() >= POSTS_MAX || *waiting + bytes > destination.bytes_max() {
            return Err(BrokerError::Overloaded);
        }
        *waiting += bytes;
        self.tickets += 1;
        let (reply, receiver) = oneshot::channel();
        self.awaited.insert(self.tickets, Awaited { destination, bytes, reply });
        Ok((self.tickets, receiver))
    }

    /// Ends the wait for a reply. `None`: the session's shard has not answered in time.
    pub(super) fn end_wait(&mut self, ticket: u64, reply: Option<CommandReply>) {
        let Some(awaited) = self.awaited.remove(&ticket) else { return };
        self.awaited_bytes[awaited.destination as usize] -= awaited.bytes;
        if let Some(reply) = reply {
            let _ = awaited.reply.send(reply); // the client may be gone
        }
    }

    // --- posts for this shard's sessions ---

    /// Adds a post and returns the number of its first reply, which identifies the post; `None` if there are
    /// [`POSTS_MAX`] already, or [`POSTS_OF_SESSION_MAX`] for its session.
    pub(super) fn insert(
        &mut self,
        session: SessionRef,
        back: ReplyAddress,
        commands: Vec<&RawValue>,
        is_array: bool,
    ) -> Option<u32> {
        let of_session = self.of_sessions.get(&session.index).copied().unwrap_or_default();
        if self.under_way.len() >= POSTS_MAX || of_session >= POSTS_OF_SESSION_MAX {
            return None;
        }
        self.of_sessions.insert(session.index, of_session + 1);
        let missing = commands.len();
        let first = self.number(missing as u32);
        let commands = commands.into_iter().map(ToOwned::to_owned).collect();
        let replies = vec![None; missing];
        let post = Post { session, back, is_array, commands, replies, missing, bytes: 0, begun: 0, waits_for: None };
        self.under_way.insert(first, post);
        Some(first)
    }

    /// Takes `count` consecutive reply numbers and returns the first. It is never 0, which means "no number".
    fn number(&mut self, count: u32) -> u32 {
        let first = self.numbers.checked_add(1).filter(|first| first.checked_add(count).is_some()).unwrap_or(1);
        self.numbers = first + count - 1;
        first
    }

    /// The next command of a post, and where its reply goes; `None` after the last one.
    pub(super) fn next_command(&mut self, first: u32) -> Option<(ReplyTo, Box<RawValue>)> {
        let post = self.under_way.get_mut(&first)?;
        let command = post.commands.get(post.begun)?.clone();
        let number = ReplyNumber::new(first + post.begun as u32);
        post.begun += 1;
        Some((ReplyTo { post: number, ..ReplyTo::without_id(post.session) }, command))
    }

    /// Makes the next commands wait for the last one that has begun, unless that has its reply already. Returns whether
    /// they wait.
    pub(super) fn wait_for_last(&mut self, first: u32) -> bool {
        let Some(post) = self.under_way.get_mut(&first) else { return false };
        let last = post.begun - 1;
        post.waits_for = Some(last).filter(|last| post.replies[*last].is_none());
        post.waits_for.is_some()
    }

    /// Takes the reply to one command.
    pub(super) fn reply(&mut self, reply_to: ReplyTo, mut text: Vec<u8>) -> Option<PostStep> {
        let number = reply_to.post?.get();
        let (first, post) = self.under_way.range_mut(..=number).next_back()?;
        let (first, index) = (*first, (number - first) as usize);
        let reply = post.replies.get_mut(index).filter(|reply| reply.is_none())?;
        if text.len() > REPLY_BYTES_SMALL && post.bytes + text.len() > REPLY_BYTES_MAX {
            let most = format!("the answers to a post have at most {REPLY_BYTES_MAX} bytes");
            let refusal = Refusal::new(ErrorCode::MessageTooLarge, most);
            text = native::encode(&Event::refusal(reply_to.id, None, &refusal));
        }
        post.bytes += text.len();
        *reply = Some(text);
        post.missing -= 1;
        if post.missing == 0 {
            return self.finish(first).map(|(back, text)| PostStep::Finish(back, text));
        }
        post.waits_for.take_if(|join| *join == index).map(|_| PostStep::Continue(first))
    }

    /// The session of a post.
    pub(super) fn session(&self, first: u32) -> Option<SessionRef> {
        self.under_way.get(&first).map(|post| post.session)
    }

    /// Ends a post: commands without a reply are refused. Returns all replies, and where they go.
    pub(super) fn give_up(
        &mut self,
        first: u32,
        refusal: impl Fn(Unanswered) -> Refusal,
    ) -> Option<(ReplyAddress, Bytes)> {
        let post = self.under_way.get_mut(&first)?;
        let commands = post.commands.iter().zip(&mut post.replies).enumerate();
        for (index, (command, reply)) in commands.filter(|(_, (_, reply))| reply.is_none()) {
            let unanswered = match index {
                _ if index >= post.begun => Unanswered::NotBegun,
                _ if post.waits_for == Some(index) => Unanswered::Join,
                _ => Unanswered::UnderWay,
            };
            let Heading { id, room } = serde_json::from_str(command.get()).unwrap_or_default();
            *reply = Some(native::encode(&Event::refusal(id, room, &refusal(unanswered))));
        }
        self.finish(first)
    }

    /// The posts for a session, by their first numbers.
    pub(super) fn of_session(&self, session: SessionRef) -> Vec<u32> {
        self.under_way.iter().filter(|(_, post)| post.session == session).map(|(first, _)| *first).collect()
    }

    fn finish(&mut self, first: u32) -> Option<(ReplyAddress, Bytes)> {
        let Post { session, back, is_array, replies, .. } = self.under_way.remove(&first)?;
        if let Entry::Occupied(mut of_session) = self.of_sessions.entry(session.index) {
            *of_session.get_mut() -= 1;
            if *of_session.get() == 0 {
                of_session.remove();
            }
        }
        let replies: Vec<Vec<u8>> = replies.into_iter().flatten().collect();
        let text = if is_array { [b"[", &replies.join(&b","[..])[..], b"]"].concat() } else { replies.concat() };
        Some((back, text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_cannot_take_the_posts_of_all() {
        let mut posts = Posts::default();
        let back = ReplyAddress { node: fanfare_broker::NodeId(1), shard: 0, ticket: 1 };
        let insert = |posts: &mut Posts, index| {
            let ping: &RawValue = serde_json::from_str(r#"{"type":"ping"}"#).unwrap();
            posts.insert(SessionRef { index, generation: 1 }, back, vec![ping], false)
        };
        let taken: Vec<u32> = (0..POSTS_OF_SESSION_MAX + 5).filter_map(|_| insert(&mut posts, 7)).collect();
        assert_eq!(taken.len(), POSTS_OF_SESSION_MAX as usize);
        assert!(insert(&mut posts, 8).is_some(), "another session has its own");
        posts.give_up(taken[0], |_| Refusal::session_gone()).unwrap();
        assert!(insert(&mut posts, 7).is_some());
        for first in posts.under_way.keys().copied().collect::<Vec<_>>() {
            posts.give_up(first, |_| Refusal::session_gone()).unwrap();
        }
        assert!(posts.of_sessions.is_empty());
    }

    #[test]
    fn reply_numbers_begin_again_before_they_run_out() {
        let mut posts = Posts { numbers: u32::MAX - 5, ..Posts::default() };
        assert_eq!(posts.number(3), u32::MAX - 4);
        assert_eq!(posts.number(100), 1);
        assert_eq!(posts.number(1), 101);
    }
}
