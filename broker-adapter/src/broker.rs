//! The broker trait and the types that cross it. The promises are in the crate's head; this file is their shapes.

use crate::{Cursor, Room, SessionId};
use bytes::Bytes;
use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The result of a request that is made rarely. The data path (publish, deliver) uses no boxed future.
pub type BrokerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// Which consumer of this process: an index into the list the broker was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(pub u16);

/// Names one process in the cluster; a restart is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// A fresh id.
    #[must_use]
    pub fn random() -> Self {
        Self(crate::cursor::random_u64())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Tells one publish from every other: the node and its running number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// Where it was published.
    pub node: NodeId,
    /// The node's running number.
    pub number: u64,
}

/// How much of a room's past is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At least so many messages.
    pub messages: u32,
    /// For at least so long after each was published.
    pub ttl: Duration,
}

/// An idempotency key: 1 to 64 bytes, scoped to its room, remembered for 5 minutes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The longest key, in bytes.
    pub const BYTES_MAX: usize = 64;
    /// How long a key is remembered.
    pub const TTL: Duration = Duration::from_secs(300);

    /// `None` for an empty or too long key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (1..=Self::BYTES_MAX).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Where.
    pub room: Room,
    /// The room's class as the publisher's node knows it; `None`: no history, no cursor.
    pub retention: Option<Retention>,
    /// The session that published it; `None`: a back end.
    pub author: Option<SessionId>,
    /// Milliseconds since 1970, by the publishing node's clock.
    pub ts_ms: u64,
    /// The bytes that every member's node gets, untouched.
    pub payload: Bytes,
    /// With a key, a second publish within [`IdempotencyKey::TTL`] is answered with the first one's cursor.
    pub key: Option<IdempotencyKey>,
}

/// A publish that the backplane has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its place; `None` in a room without history.
    pub cursor: Option<Cursor>,
    /// An earlier publish with the same key got here first; nothing new was published.
    pub duplicate: bool,
}

/// The result of a publish.
pub type PublishResult = Result<Published, BrokerError>;

/// Whom to tell what became of a publish.
#[derive(Debug)]
pub enum Reply {
    /// Nobody.
    Nobody,
    /// A subscriber, by [`Subscriber::on_published`], whatever the outcome.
    Ticket(SubscriberId, Ticket),
    /// A subscriber, by [`Subscriber::on_published`], only if it failed.
    OnFailure(SubscriberId, Ticket),
    /// A task that waits.
    Waiter(oneshot::Sender<PublishResult>),
}

/// A subscriber's own name for one publish in flight; the broker only hands it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub [u64; 3]);

/// A message as members get it.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Its place; `None` in a room without history.
    pub cursor: Option<Cursor>,
    /// Tells it from every other, also where there is no cursor.
    pub id: MessageId,
    /// The session that published it; `None`: a back end.
    pub author: Option<SessionId>,
    /// Milliseconds since 1970.
    pub ts_ms: u64,
    /// The publisher's bytes.
    pub payload: Bytes,
}

/// Something that happened in a room.
#[derive(Debug, Clone)]
pub enum RoomEvent {
    /// A message.
    Message(Publication),
    /// Somebody came or went.
    Presence(PresenceEvent),
    /// After a reconnect, and now and then in a quiet room: where the room stands now. Sent only where it differs from
    /// what was delivered last.
    Head(Cursor),
}

/// An [`RoomEvent`] and its room.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where.
    pub room: Room,
    /// What.
    pub event: RoomEvent,
}

/// A consumer of this process. Calls come from any thread, must not block and must not call the broker back.
pub trait Subscriber: Send + Sync + 'static {
    /// Takes an event of a room this subscriber follows. A full subscriber controls the room and catches up from
    /// history later: an event in a room with history is never lost in silence.
    fn deliver(&self, delivery: Delivery);
    /// What became of a publish into `room` that asked for it by ticket. Never lost: publishes in flight are bounded.
    fn on_published(&self, ticket: Ticket, room: Room, outcome: PublishResult);
    /// Takes a control message that a node sent by [`Broker::send_control`].
    fn on_control(&self, message: Bytes);
}

/// A user's name as members see it. The gateway checks what may be one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User(Arc<str>);

impl User {
    /// Copies a name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whom presence counts: a named user, or an anonymous session, which is a user of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// A user, once however many sessions there are.
    User(User),
    /// An anonymous session.
    Session(SessionId),
}

/// A user who is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub who: Who,
    /// How many sessions the user has in the room.
    pub sessions: u32,
    /// What the user shows to others: JSON text, opaque here.
    pub info: Option<Bytes>,
}

impl Member {
    /// Merges the sessions of each user. A user shows the info of any session that has one.
    pub(crate) fn merge(sessions: impl Iterator<Item = (Who, Option<Bytes>)>) -> Vec<Self> {
        let mut members: HashMap<Who, Self> = HashMap::new();
        for (who, info) in sessions {
            let member = members.entry(who.clone()).or_insert(Self { who, sessions: 0, info: None });
            member.sessions += 1;
            member.info = member.info.take().or(info);
        }
        members.into_values().collect()
    }
}

/// A session that comes into a room or leaves it.
#[derive(Debug, Clone)]
pub enum PresenceUpdate {
    /// Comes in. Again with the same session: its info is replaced, nothing is announced.
    Enter {
        /// Which session.
        session: SessionId,
        /// Whose session; `None`: an anonymous one.
        user: Option<User>,
        /// What the user shows to others.
        info: Option<Bytes>,
        /// Whether members hear of it ([`RoomEvent::Presence`]); counting happens either way.
        announce: bool,
    },
    /// Leaves. Unknown sessions leave without a trace.
    Leave {
        /// Which session.
        session: SessionId,
        /// As it was when it came in.
        announce: bool,
    },
}

/// Came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceKind {
    /// The user's first session came in.
    Joined,
    /// The user's last session left.
    Left,
}

/// A user came into a room or left it.
#[derive(Debug, Clone)]
pub struct PresenceEvent {
    /// Came or went.
    pub kind: PresenceKind,
    /// Who.
    pub who: Who,
    /// What the user shows to others.
    pub info: Option<Bytes>,
    /// Grows with every presence change of the room; 0 where a room starts anew.
    pub version: u64,
}

/// How much of [`Broker::presence`] is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceDetail {
    /// Numbers: constant time.
    Counts,
    /// Every user too.
    Members,
}

/// Who is in a room, in the whole cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// Sessions.
    pub sessions: u64,
    /// Users.
    pub users: u64,
    /// The users, in no order; empty for [`PresenceDetail::Counts`].
    pub members: Vec<Member>,
    /// The last [`PresenceEvent::version`] that is contained.
    pub version: u64,
    /// The room's head, if it has had a message or a member in a class with history.
    pub head: Option<Cursor>,
}

/// Which part of a room's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HistoryQuery {
    /// After this place, ascending from there; `None`: the last `limit` messages.
    pub since: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

/// Messages are missing between a cursor and what history still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How many; `None` when the cursor is of another epoch, so that nobody can know.
    pub missed: Option<u64>,
}

/// A part of a room's past, ascending.
#[derive(Debug, Clone)]
pub struct Page {
    /// The messages.
    pub publications: Vec<Publication>,
    /// The place from which the page begins: `since`; after a gap the place before the oldest kept message.
    pub from: Cursor,
    /// The room's last message when the page was read. The page is complete if its last message is this one.
    pub head: Cursor,
    /// Set when `since` lies before what is kept, beyond the head, or in another epoch.
    pub gap: Option<Gap>,
}

impl Page {
    /// Cuts the page to about `bytes` of payload, but never to nothing: its newest messages stay if `newest`, else its
    /// first ones, and [`Page::end`] says where to read on.
    pub fn cut(&mut self, bytes: usize, newest: bool) {
        let mut room = bytes;
        let mut fits = |p: &Publication| {
            let fits = room > 0;
            room = room.saturating_sub(p.payload.len());
            fits
        };
        if !newest {
            let keep = self.publications.iter().take_while(|p| fits(p)).count();
            return self.publications.truncate(keep);
        }
        let keep = self.publications.iter().rev().take_while(|p| fits(p)).count();
        let gone = self.publications.drain(..self.publications.len() - keep).last();
        self.from = gone.and_then(|p| p.cursor).unwrap_or(self.from);
    }

    /// The place after the last message of the page.
    #[must_use]
    pub fn end(&self) -> Cursor {
        self.publications.last().and_then(|p| p.cursor).unwrap_or(self.from)
    }
}

/// Rooms with members, in name order.
#[derive(Debug, Clone)]
pub struct RoomQuery {
    /// Only names that begin so.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// A page of rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomList {
    /// Names, ascending.
    pub rooms: Vec<Room>,
    /// More follow after the last one.
    pub more: bool,
}

/// Which nodes get a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeTarget {
    /// Every node, this one included.
    All,
    /// One node.
    One(NodeId),
}

/// How the backplane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// This process in the cluster: where [`NodeTarget::One`] finds it.
    pub node: NodeId,
    /// Publishes can be expected to succeed.
    pub up: bool,
    /// Connections made after the first ones, since the start.
    pub reconnects: u64,
    /// Publishes waiting for their answer.
    pub in_flight: u64,
    /// Rooms that this node follows.
    pub rooms: u64,
    /// Envelopes dropped because this version cannot read them.
    pub unreadable: u64,
}

/// Why a request failed. Every variant is something a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The backplane does not answer; retry later.
    #[error("the backplane is not available")]
    Unavailable,
    /// Too many requests are waiting for the backplane; retry later.
    #[error("too much is waiting for the backplane")]
    Overloaded,
    /// The room has no history.
    #[error("the room has no history")]
    HistoryOff,
    /// The backplane answered with something no version of it should; the text is for operators.
    #[error("the backplane answered unexpectedly: {0}")]
    Protocol(String),
}

/// A backplane. See the crate's head for what each call promises; the `contract` suite tests it.
///
/// `publish` and `update_presence` take effect in the order in which one thread calls them for one room.
pub trait Broker: Send + Sync + 'static {
    /// Publishes. Never blocks; the outcome goes to `reply`, within about a second.
    fn publish(&self, publish: Publish, reply: Reply);

    /// Begins to deliver the room's events to `who`. Answers with the room's head once deliveries are certain
    /// (`None` for a room without history). Waits as long as the backplane is away. Takes effect whether or not the
    /// answer is awaited; the answer to one that `unsubscribe` has undone says nothing about a later one.
    fn subscribe(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> BrokerFuture<'_, Option<Cursor>>;

    /// Ends the deliveries to `who`; a few may still be under way.
    fn unsubscribe(&self, who: SubscriberId, room: &Room);

    /// Reads a part of a room's past.
    fn history(&self, room: &Room, retention: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page>;

    /// Notes that a session came or went. Takes effect whether or not the answer is awaited; survives a time
    /// without backplane (what stands at its end is written then). An error means: not written yet.
    fn update_presence(&self, room: &Room, attendance: PresenceUpdate) -> BrokerFuture<'_, ()>;

    /// Who is in a room, cluster-wide.
    fn presence(&self, room: &Room, detail: PresenceDetail) -> BrokerFuture<'_, Presence>;

    /// Rooms that have members, cluster-wide.
    fn rooms(&self, query: RoomQuery) -> BrokerFuture<'_, RoomList>;

    /// Sends a control message to nodes ([`Subscriber::on_control`] of each of their subscribers). Best effort; `false`: no
    /// node is subscribed under that id, so the node has ended.
    fn send_control(&self, target: NodeTarget, message: Bytes) -> BrokerFuture<'_, bool>;

    /// Whether publishes into a room can be expected to succeed, from memory.
    fn is_up(&self, room: &Room) -> bool;

    /// How the backplane is, from memory.
    fn status(&self) -> Status;

    /// Writes what is pending, takes this node out of the cluster and closes the connections.
    fn close(&self) -> BrokerFuture<'_, ()>;
}
