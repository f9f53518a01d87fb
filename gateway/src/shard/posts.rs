//! Commands of sessions that cannot send over their own connection: posted to any node, done by the shard that has the
//! session, answered to whoever took the post. The way there and back are notes (`notes`), also within one node, so that
//! there is one way. A post of several commands is answered when its last one is, in their order.

use super::{
    Shard, State,
    commands::ReplyTo,
    conn::{SessionRef, Timer},
};
use crate::protocol::{
    address::PostAddress,
    control::{CommandReply, ControlMessage, PostedCommands, ReplyAddress},
    error::{ErrorCode, Refusal},
    event::Event,
    native,
    post::commands,
};
use bytes::Bytes;
use fanfare_broker::{BrokerError, NodeId, NodeTarget};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Posts that may be under way on one shard, and posts whose answers one shard may wait for.
const POSTS_MAX: usize = 4096;
/// The bodies of the latter: those for this node's sessions, and those for others'. Redis closes a node's connection when
/// 32 MiB wait for it, and all of the others may be for one.
const BYTES_MAX: [usize; 2] = [64 << 20, 4 << 20];
/// Bytes of a post's answers together: histories and lists of members are refused beyond it, small ones never.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ANSWER_BYTES_SMALL: usize = 4 << 10;
/// Posts of one shard that wait whether somebody hears as the node they are for.
const LOOKING_MAX: usize = 64;
/// A node that nobody hears as is gone after so long: its connection to the backplane may be coming back.
const GONE_AFTER: Duration = Duration::from_secs(3);
const GONE_LOOK: Duration = Duration::from_millis(300);
/// What has not been answered after so long is answered as late: a join waits for as long as the backplane is away.
const LATE_MS: u32 = 6_000;
/// How long the node that took a post waits for its answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Numbers the answers that posts wait for, on one shard; a post's have consecutive ones.
pub(super) type ReplyNumber = NonZeroU32;

/// A shard's share of posts.
#[derive(Default)]
pub(super) struct Posts {
    /// By the number of their first answer.
    under_way: BTreeMap<u32, Post>,
    numbers: u32,
    /// Posts that this shard has taken for others.
    awaited: HashMap<u64, oneshot::Sender<CommandReply>>,
    awaited_bytes: [usize; 2],
    tickets: u64,
}

/// A post whose answer is waited for, for as long as somebody does.
struct Awaited<'a> {
    shard: &'a Shard,
    ticket: u64,
    /// Which of [`BYTES_MAX`], and how much.
    bytes: (usize, usize),
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let posts = &mut self.shard.state.borrow_mut().posts;
        posts.awaited.remove(&self.ticket);
        posts.awaited_bytes[self.bytes.0] -= self.bytes.1;
    }
}

struct Post {
    who: SessionRef,
    back: ReplyAddress,
    is_array: bool,
    answers: Vec<Option<Vec<u8>>>,
    missing: usize,
    bytes: usize,
    commands: Vec<Box<RawValue>>,
    /// How many of them are begun. The others wait for a join before them, so that whoever joins and publishes in one post
    /// gets what was published.
    begun: usize,
    /// The place of the join that they wait for.
    waits_for: Option<usize>,
}

/// What of a command stands in every answer to it.
#[derive(Default, Deserialize)]
struct Heading<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    room: Option<Cow<'a, str>>,
}

impl Shard {
    // --- the node that took the post ---

    /// Has the session's own shard do what was posted for it, and waits for the answers.
    ///
    /// # Errors
    /// [`Refusal::session_gone`] if there is no such session; what the backplane says if its node cannot be reached.
    pub(crate) async fn post(&self, address: PostAddress, body: Bytes) -> Result<Bytes, Refusal> {
        if let Some(answer) = self.try_post(address, body.clone()).await? {
            return answer;
        }
        if address.node == self.node.id {
            return Err(Refusal::session_gone());
        }
        // Nobody hears as that node. Few may wait for one that comes back: addresses are easily invented.
        let looking = Rc::clone(&self.looking);
        if Rc::strong_count(&looking) > LOOKING_MAX {
            return Err(BrokerError::Overloaded.into());
        }
        let gone = Instant::now() + GONE_AFTER;
        while Instant::now() < gone {
            tokio::time::sleep(GONE_LOOK).await;
            if let Some(answer) = self.try_post(address, body.clone()).await? {
                return answer;
            }
        }
        Err(Refusal::session_gone())
    }

    /// One attempt; `None` if nobody hears as the session's node.
    async fn try_post(&self, address: PostAddress, body: Bytes) -> Result<Option<Result<Bytes, Refusal>>, Refusal> {
        let is_elsewhere = usize::from(address.node != self.node.id);
        let (awaited, answered) = self.await_reply((is_elsewhere, body.len()))?;
        let back = ReplyAddress { node: self.node.id, shard: self.me.0, ticket: awaited.ticket };
        let command = ControlMessage::Command(PostedCommands { address, back, body });
        if !self.send_control(address.node, address.shard, &command).await? {
            return Ok(None);
        }
        let answer = tokio::time::timeout(PATIENCE, answered).await.ok().and_then(Result::ok);
        Ok(Some(match answer {
            Some(Ok(text)) => Ok(text),
            Some(Err(ErrorCode::SessionGone)) => Err(Refusal::session_gone()),
            Some(Err(_)) => Err(BrokerError::Overloaded.into()),
            None => Err(BrokerError::Unavailable.into()),
        }))
    }

    fn await_reply(&self, bytes: (usize, usize)) -> Result<(Awaited<'_>, oneshot::Receiver<CommandReply>), Refusal> {
        let posts = &mut self.state.borrow_mut().posts;
        if posts.awaited.len() >= POSTS_MAX || posts.awaited_bytes[bytes.0] + bytes.1 > BYTES_MAX[bytes.0] {
            return Err(BrokerError::Overloaded.into());
        }
        posts.tickets += 1;
        posts.awaited_bytes[bytes.0] += bytes.1;
        let (answer, answered) = oneshot::channel();
        posts.awaited.insert(posts.tickets, answer);
        Ok((Awaited { shard: self, ticket: posts.tickets, bytes }, answered))
    }

    /// Sends a note to one shard of a node; `false` if there is no such shard or node.
    async fn send_control(&self, node: NodeId, shard: u16, message: &ControlMessage) -> Result<bool, BrokerError> {
        if node != self.node.id {
            return self.node.broker.send_control(NodeTarget::One(node), message.encode()).await;
        }
        Ok(self.node.send_to_shard(shard, message.encode()))
    }

    /// The answer to a post that this shard has taken.
    pub(super) fn on_reply(&self, state: &mut State, ticket: u64, answer: CommandReply) {
        if let Some(waiting) = state.posts.awaited.remove(&ticket) {
            let _ = waiting.send(answer); // whoever posted may be gone
        }
    }

    // --- the shard that has the session ---

    /// Does what was posted for a session of this shard.
    pub(super) fn on_command(self: &Rc<Self>, state: &mut State, command: PostedCommands) {
        let PostedCommands { address, back, body } = command;
        let who = SessionRef::from_u64(address.slot);
        let secret = state.sessions.open(who).and_then(|conn| conn.stream.as_ref()).map(|stream| stream.secret);
        if !secret.is_some_and(|secret| secret.is(&address.secret)) {
            return self.send_reply(back, Err(ErrorCode::SessionGone));
        }
        // It was read where it was posted; another version may have seen it otherwise.
        let Some((commands, is_array)) = std::str::from_utf8(&body).ok().and_then(|body| commands(body).ok()) else {
            return self.send_reply(back, Err(ErrorCode::Internal));
        };
        if state.posts.under_way.len() >= POSTS_MAX {
            return self.send_reply(back, Err(ErrorCode::BackplaneOverloaded));
        }
        let missing = commands.len();
        let first = state.posts.number(missing as u32);
        let commands = commands.into_iter().map(ToOwned::to_owned).collect();
        let answers = vec![None; missing];
        let post = Post { who, back, is_array, answers, missing, bytes: 0, commands, begun: 0, waits_for: None };
        state.posts.under_way.insert(first, post);
        self.start_wheel_entry(state, Timer::Post(first), LATE_MS);
        self.go_on_with_post(state, first);
    }

    /// Begins a post's commands up to a join that takes its time.
    fn go_on_with_post(self: &Rc<Self>, state: &mut State, first: u32) {
        while let Some(post) = state.posts.under_way.get_mut(&first) {
            let place = post.begun;
            let Some(text) = post.commands.get(place).cloned() else { return };
            post.begun += 1;
            let asker = ReplyTo { post: ReplyNumber::new(first + place as u32), ..ReplyTo::unnumbered(post.who) };
            let joins = self.command(state, asker, text.get());
            match state.posts.under_way.get_mut(&first) {
                Some(post) if joins && post.answers[place].is_none() => {
                    post.waits_for = Some(place);
                    return;
                }
                _ => {}
            }
        }
    }

    /// The answer to one posted command; the last one sends them all.
    pub(super) fn reply_to_post(&self, state: &mut State, asker: ReplyTo, mut text: Vec<u8>) {
        let Some(number) = asker.post else { return };
        let Some((first, post)) = state.posts.under_way.range_mut(..=number.get()).next_back() else { return };
        let (first, place) = (*first, (number.get() - first) as usize);
        let Some(answer) = post.answers.get_mut(place).filter(|answer| answer.is_none()) else { return };
        if text.len() > ANSWER_BYTES_SMALL && post.bytes + text.len() > ANSWER_BYTES_MAX {
            let most = format!("the answers to a post have at most {ANSWER_BYTES_MAX} bytes");
            text = native::encode(&Event::refusal(asker.id, None, &Refusal::new(ErrorCode::MessageTooLarge, most)));
        }
        post.bytes += text.len();
        *answer = Some(text);
        post.missing -= 1;
        if post.missing == 0 {
            return self.finish_post(state, first);
        }
        if post.waits_for.take_if(|join| *join == place).is_some()
            && let Some(this) = self.this.upgrade()
        {
            // Not here: whoever answers is in the middle of something.
            tokio::task::spawn_local(async move {
                this.go_on_with_post(&mut this.state.borrow_mut(), first);
            });
        }
    }

    fn finish_post(&self, state: &mut State, first: u32) {
        let Some(post) = state.posts.under_way.remove(&first) else { return };
        let answers: Vec<Vec<u8>> = post.answers.into_iter().flatten().collect();
        let text = if post.is_array { [b"[", &answers.join(&b","[..])[..], b"]"].concat() } else { answers.concat() };
        self.send_reply(post.back, Ok(text.into()));
    }

    /// Commands that wait for something are answered as late; what they ask for may still come true.
    pub(super) fn give_up_post(&self, state: &mut State, first: u32) {
        self.fill_post(state, first, &BrokerError::Unavailable.into());
    }

    /// A session ends: what was posted for it and is not done will not be.
    pub(super) fn cancel_posts(&self, state: &mut State, who: SessionRef) {
        let of_session = state.posts.under_way.iter().filter(|(_, post)| post.who == who).map(|(first, _)| *first);
        for first in of_session.collect::<Vec<_>>() {
            self.fill_post(state, first, &Refusal::session_gone());
        }
    }

    fn fill_post(&self, state: &mut State, first: u32, refusal: &Refusal) {
        let Some(post) = state.posts.under_way.get_mut(&first) else { return };
        for (command, answer) in post.commands.iter().zip(&mut post.answers).filter(|(_, answer)| answer.is_none()) {
            let Heading { id, room } = serde_json::from_str(command.get()).unwrap_or_default();
            *answer = Some(native::encode(&Event::refusal(id, room, refusal)));
        }
        self.finish_post(state, first);
    }

    pub(super) fn send_reply(&self, back: ReplyAddress, answer: CommandReply) {
        let message = ControlMessage::Reply { shard: back.shard, ticket: back.ticket, reply: answer };
        if back.node == self.node.id {
            self.node.send_to_shard(back.shard, message.encode());
        } else {
            // The node that waits gives up by itself.
            drop(self.node.broker.send_control(NodeTarget::One(back.node), message.encode()));
        }
    }
}

impl Posts {
    /// So many numbers in a row; the first one. Never 0, which stands for none.
    fn number(&mut self, count: u32) -> u32 {
        let first = self.numbers.checked_add(1).filter(|first| first.checked_add(count).is_some()).unwrap_or(1);
        self.numbers = first + count - 1;
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_answers_begin_again_before_they_run_out() {
        let mut posts = Posts { numbers: u32::MAX - 5, ..Posts::default() };
        assert_eq!(posts.number(3), u32::MAX - 4);
        assert_eq!(posts.number(100), 1);
        assert_eq!(posts.number(1), 101);
    }
}
