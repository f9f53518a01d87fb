//! The trait `Broker` and its types. What the calls promise together is in the crate's head (`lib.rs`); this file
//! says what each call takes and returns.

use crate::{Cursor, Room, SessionId};
use bytes::Bytes;
use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The future of a rare request. The data path (publish, deliver) has no boxed futures.
pub type BrokerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// One subscriber of this process: its index in the list that the broker was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(pub u16);

/// One process in the cluster. A restart has another id.
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

/// Identifies one publish in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// The node that published it.
    pub node: NodeId,
    /// The node's running number for it.
    pub number: u64,
}

/// How much of a room's history is kept, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The number of the newest messages.
    pub messages: u32,
    /// How long each message is kept after it was published.
    pub ttl: Duration,
}

/// An idempotency key: 1 to 64 bytes, scoped to its room, remembered for 5 minutes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The longest key, in bytes.
    pub const BYTES_MAX: usize = 64;
    /// How long after its first use a key is remembered.
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
    /// The room.
    pub room: Room,
    /// The room's retention as the publisher's node knows it; `None`: the room has neither history nor cursors.
    pub retention: Option<Retention>,
    /// The session that published it; `None`: a back end.
    pub author: Option<SessionId>,
    /// Milliseconds since 1970, by the publishing node's clock.
    pub ts_ms: u64,
    /// The bytes that every member's node gets, unchanged.
    pub payload: Bytes,
    /// A second publish with the same key within [`IdempotencyKey::TTL`] publishes nothing and returns the first one's
    /// cursor.
    pub key: Option<IdempotencyKey>,
}

/// A publish that the backplane has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The message's cursor; `None` in a room without history.
    pub cursor: Option<Cursor>,
    /// An earlier publish had the same key, so nothing was published now.
    pub duplicate: bool,
}

/// The result of a publish.
pub type PublishResult = Result<Published, BrokerError>;

/// Who gets the result of a publish.
#[derive(Debug)]
pub enum Reply {
    /// Nobody: the result is dropped.
    Nobody,
    /// A subscriber, by [`Subscriber::on_published`].
    Ticket(SubscriberId, Ticket),
    /// A subscriber, by [`Subscriber::on_published`], but only if the publish has failed.
    OnFailure(SubscriberId, Ticket),
    /// A task that waits.
    Waiter(oneshot::Sender<PublishResult>),
}

impl Reply {
    /// Delivers the result of a publish into `room`.
    pub(crate) fn report(self, subscribers: &[Arc<dyn Subscriber>], room: Room, result: PublishResult) {
        match self {
            Self::Nobody => {}
            Self::OnFailure(..) if result.is_ok() => {}
            Self::Ticket(who, ticket) | Self::OnFailure(who, ticket) => {
                if let Some(subscriber) = subscribers.get(usize::from(who.0)) {
                    subscriber.on_published(ticket, room, result);
                }
            }
            Self::Waiter(waiter) => drop(waiter.send(result)), // the waiter may be gone
        }
    }
}

/// A subscriber's own mark for one publish in flight. The broker returns it with the result and never reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub [u64; 3]);

/// A message as members get it.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Its cursor; `None` in a room without history.
    pub cursor: Option<Cursor>,
    /// Identifies the message, also in a room without cursors.
    pub id: MessageId,
    /// The session that published it; `None`: a back end.
    pub author: Option<SessionId>,
    /// When it was published, in milliseconds since 1970.
    pub ts_ms: u64,
    /// The publisher's bytes.
    pub payload: Bytes,
}

/// Something that happened in a room.
#[derive(Debug, Clone)]
pub enum RoomEvent {
    /// A message.
    Message(Publication),
    /// A user joined or left.
    Presence(PresenceEvent),
    /// The room's head, which differs from the last cursor that was delivered, so messages were lost on the way. Heads
    /// are compared after a reconnect, and in quiet rooms from time to time.
    Head(Cursor),
    /// The version of the room's presence after a reconnect: if it is higher than that of the last [`PresenceEvent`],
    /// events were lost on the way.
    PresenceVersion(u64),
}

/// A [`RoomEvent`] and its room.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The room.
    pub room: Room,
    /// What happened in it.
    pub event: RoomEvent,
}

/// A consumer of events in this process: a shard of the gateway. Its methods are called from any thread. They must not
/// block and must not call the broker.
pub trait Subscriber: Send + Sync + 'static {
    /// Takes an event of a room that this subscriber follows. A subscriber that is full remembers the room and catches
    /// up from history later, so an event in a room with history is never lost unnoticed.
    fn deliver(&self, delivery: Delivery);
    /// Takes the result of a publish into `room` that asked for it by ticket. Every result is taken, also by a full
    /// subscriber: publishes in flight are bounded.
    fn on_published(&self, ticket: Ticket, room: Room, result: PublishResult);
    /// Takes a control message that a node sent by [`Broker::send_control`].
    fn on_control(&self, message: Bytes);
}

/// A user's name as members see it. The gateway checks the name.
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

/// What presence counts as one member: a named user, or an anonymous session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// A user, who counts once with any number of sessions.
    User(User),
    /// An anonymous session.
    Session(SessionId),
}

/// A member who is present in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The user or anonymous session.
    pub who: Who,
    /// How many sessions the member has in the room.
    pub sessions: u32,
    /// What the member shows to others: JSON text, opaque to the broker.
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

/// A session that enters a room or leaves it.
#[derive(Debug, Clone)]
pub enum PresenceUpdate {
    /// The session enters. If it is in the room already, its info is replaced and no event is sent.
    Enter {
        /// The session.
        session: SessionId,
        /// The session's user; `None`: an anonymous session.
        user: Option<User>,
        /// What the member shows to others.
        info: Option<Bytes>,
        /// Whether members get an event ([`RoomEvent::Presence`]). The session counts either way.
        announce: bool,
    },
    /// An anonymous session is in the room for `ttl` from now, unless it has longer already. Any node may say so again,
    /// and none keeps it: the leases outlive the nodes.
    Lease {
        /// The session.
        session: SessionId,
        /// As of [`PresenceUpdate::Enter`].
        announce: bool,
        /// How long it stays unless the lease is renewed, to about a second.
        ttl: Duration,
    },
    /// The session gives its lease back: it leaves now.
    EndLease {
        /// The session.
        session: SessionId,
        /// The same as of its lease.
        announce: bool,
    },
    /// The session leaves. The leave of an unknown session changes nothing.
    Leave {
        /// The session.
        session: SessionId,
        /// The same as when it entered.
        announce: bool,
    },
}

/// Whether a member joined or left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceKind {
    /// The user's first session entered.
    Joined,
    /// The user's last session left.
    Left,
}

/// A member joined a room or left it.
#[derive(Debug, Clone)]
pub struct PresenceEvent {
    /// Joined or left.
    pub kind: PresenceKind,
    /// The user or anonymous session.
    pub who: Who,
    /// What the member shows to others.
    pub info: Option<Bytes>,
    /// Grows with every change of the room's presence; 0 before the first one.
    pub version: u64,
}

/// How much [`Broker::presence`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PresenceDetail {
    /// Numbers only, in constant time.
    Counts,
    /// The members too.
    Members,
}

/// Who is in a room, in the whole cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// The number of sessions.
    pub sessions: u64,
    /// The number of users; each anonymous session is one.
    pub users: u64,
    /// The members in no particular order; empty with [`PresenceDetail::Counts`].
    pub members: Vec<Member>,
    /// The version of the last [`PresenceEvent`] that is contained.
    pub version: u64,
    /// The room's head; `None` if the room has no history, or has had neither a message nor a member.
    pub head: Option<Cursor>,
}

/// Which part of a room's history to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HistoryQuery {
    /// The cursor after which the page begins; `None`: the page has the last `limit` messages.
    pub since: Option<Cursor>,
    /// The largest number of messages.
    pub limit: usize,
    /// What it is read for.
    pub purpose: Purpose,
}

/// What a read is for. Reads of one purpose do not wait for those of another: questions that clients ask must not hold up
/// members that catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A client asks for history or presence.
    Question,
    /// A client resumes, or polls.
    Resume,
    /// A node has missed messages.
    CatchUp,
    /// The broker itself: removing the members of dead nodes.
    Upkeep,
}

/// Messages that are missing between a cursor and the oldest message that history still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How many are missing; `None` if that is unknown, because the cursor is of another epoch or beyond the head.
    pub missed: Option<u64>,
}

/// A part of a room's history.
#[derive(Debug, Clone)]
pub struct Page {
    /// The messages, in ascending order.
    pub publications: Vec<Publication>,
    /// The cursor before the first message: `since`, or after a gap the cursor before the oldest kept message.
    pub from: Cursor,
    /// The room's head when the page was read. If the last message is this one, there is nothing more to read.
    pub head: Cursor,
    /// `Some` if `since` is before the oldest kept message, beyond the head, or of another epoch.
    pub gap: Option<Gap>,
}

impl Page {
    /// Cuts the page to messages that have `bytes` together, by `size_of`, but never to nothing. Its newest messages stay
    /// if `newest`, else its oldest ones; then [`Page::end`] is the cursor from which to read on.
    pub fn cut(&mut self, bytes: usize, newest: bool, size_of: impl Fn(&Publication) -> usize) {
        if !newest {
            let keep = fitting(self.publications.iter(), bytes, size_of);
            return self.publications.truncate(keep);
        }
        let keep = fitting(self.publications.iter().rev(), bytes, size_of);
        let gone = self.publications.drain(..self.publications.len() - keep).last();
        self.from = gone.and_then(|p| p.cursor).unwrap_or(self.from);
    }

    /// Takes the oldest messages off, up to `bytes` of payload but at least one, as a page of their own. The rest follows
    /// it without a gap.
    #[must_use]
    pub fn take_oldest(&mut self, bytes: usize) -> Self {
        let keep = fitting(self.publications.iter(), bytes, |publication| publication.payload.len());
        let publications = self.publications.drain(..keep).collect();
        let oldest = Self { publications, from: self.from, head: self.head, gap: self.gap.take() };
        self.from = oldest.end();
        oldest
    }

    /// The cursor of the last message, from which to read on.
    #[must_use]
    pub fn end(&self) -> Cursor {
        self.publications.last().and_then(|p| p.cursor).unwrap_or(self.from)
    }
}

/// How many of these messages have `bytes` together, by `size_of`; at least one.
fn fitting<'a>(
    publications: impl Iterator<Item = &'a Publication>,
    bytes: usize,
    size_of: impl Fn(&Publication) -> usize,
) -> usize {
    let mut used = 0;
    let fits = |publication: &&Publication| {
        let is_first = used == 0;
        used += size_of(publication);
        is_first || used <= bytes
    };
    publications.take_while(fits).count()
}

/// Which rooms with members to list.
#[derive(Debug, Clone)]
pub struct RoomQuery {
    /// Only names that begin with this.
    pub prefix: String,
    /// Only names after this one in the order of names.
    pub after: Option<String>,
    /// The largest number of names.
    pub limit: usize,
}

/// A page of rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomList {
    /// The rooms in the order of their names.
    pub rooms: Vec<Room>,
    /// There are more rooms after the last one.
    pub more: bool,
}

/// The nodes that get a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeTarget {
    /// Every node, this one included.
    All,
    /// One node.
    One(NodeId),
}

/// The state of the connections to the backplane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// This process, as [`NodeTarget::One`] addresses it.
    pub node: NodeId,
    /// Publishes can be expected to succeed.
    pub up: bool,
    /// Connections since the start, without the first ones.
    pub reconnects: u64,
    /// Publishes without a result so far.
    pub in_flight: u64,
    /// Rooms that this node follows.
    pub rooms: u64,
    /// Envelopes that were dropped because this version cannot read them.
    pub unreadable: u64,
}

/// Why a request failed. Every variant is something a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The backplane cannot be reached; retry later.
    #[error("the backplane is not available")]
    Unavailable,
    /// Too many requests wait for the backplane; retry later.
    #[error("too much is waiting for the backplane")]
    Overloaded,
    /// The backplane can be read and takes no writes at present; retry later.
    #[error("the backplane takes no writes at present")]
    NotWritable,
    /// The backplane refuses this node until an operator has acted: rights, passwords, keys of another program.
    #[error("the backplane refuses this node: an operator has to act")]
    Misconfigured,
    /// The room has no history.
    #[error("the room has no history")]
    HistoryOff,
    /// The backplane sent a malformed or unknown reply; the text is for operators.
    #[error("the backplane answered unexpectedly: {0}")]
    Protocol(String),
}

impl BrokerError {
    /// Whether the same request can succeed later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Overloaded | Self::NotWritable | Self::Misconfigured)
    }
}

/// Moves publications between nodes, keeps rooms' history, and knows who is present. The suite in `contract.rs` tests
/// what the crate's head promises.
///
/// `publish` and `update_presence` take effect in the order in which one thread calls them for one room.
pub trait Broker: Send + Sync + 'static {
    /// Publishes. Never blocks; the result goes to `reply` within about a second.
    fn publish(&self, publish: Publish, reply: Reply);

    /// Begins to deliver the room's events to `who`. Returns the room's head once deliveries are certain (`None` in a
    /// room without history). Waits for as long as the backplane cannot be reached. Takes effect whether or not the
    /// future is awaited. If `unsubscribe` undoes the call, its result says nothing about a later call.
    fn subscribe(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> BrokerFuture<'_, Option<Cursor>>;

    /// Ends the deliveries to `who`. A few events may still come after the call.
    fn unsubscribe(&self, who: SubscriberId, room: &Room);

    /// Reads a part of a room's history.
    fn history(&self, room: &Room, retention: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page>;

    /// Records that a session enters or leaves a room. Takes effect whether or not the future is awaited. An error
    /// means that the change is not written yet: it is written once the backplane can be reached again, unless a later
    /// change of the session replaces it.
    fn update_presence(&self, room: &Room, update: PresenceUpdate) -> BrokerFuture<'_, ()>;

    /// Ends the leases whose time is over, if the broker does not do so by itself. To be called about once a second.
    fn end_leases(&self) {}

    /// Reads who is in a room, in the whole cluster.
    fn presence(&self, room: &Room, detail: PresenceDetail) -> BrokerFuture<'_, Arc<Presence>>;

    /// Lists the rooms that have members, in the whole cluster.
    fn rooms(&self, query: RoomQuery) -> BrokerFuture<'_, RoomList>;

    /// Sends a control message to nodes, where each subscriber gets it by [`Subscriber::on_control`]. It can be lost.
    /// Returns `false` if no node is subscribed under that id, so the node has ended.
    fn send_control(&self, target: NodeTarget, message: Bytes) -> BrokerFuture<'_, bool>;

    /// Whether publishes into a room can be expected to succeed; an error: what they would get. Asks nothing of the
    /// backplane.
    fn availability(&self, room: &Room) -> Result<(), BrokerError>;

    /// The state of the connections. Asks nothing of the backplane.
    fn status(&self) -> Status;

    /// Writes what is pending, removes this node from the cluster and closes the connections.
    fn close(&self) -> BrokerFuture<'_, ()>;
}
