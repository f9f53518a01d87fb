//! What waits in the publisher's queue: a command, and what is done with Redis's reply to it. Every command gets its
//! result exactly once. A command that is dropped before that gets [`BrokerError::Unavailable`].

use crate::{BrokerError, NodeId, Publish, PublishResult, Reply, Room, SessionId, Subscriber};
use redis::{Cmd, Value};
use std::{
    iter::once,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A command in the queue.
pub(crate) struct QueuedCommand {
    pub(crate) command: WriteCommand,
    /// When it was queued.
    pub(crate) since: Instant,
}

/// A command for one master.
pub(crate) enum WriteCommand {
    Publish(Messages),
    Presence(PresenceCommand),
    /// Asks whether Redis takes writes.
    Probe(Cmd),
    /// Everything rare: control messages, heartbeats, the removal of dead members.
    Other {
        cmd: Cmd,
        reply: oneshot::Sender<Result<Value, BrokerError>>,
    },
}

/// Messages of one call, in the order in which they were published: one in the queue, several once they are packed.
/// They have the same room and retention. A message with an idempotency key is alone.
pub(crate) struct Messages {
    pub(crate) first: PendingPublish,
    pub(crate) more: Vec<PendingPublish>,
    /// Bytes of payload.
    pub(crate) bytes: usize,
}

impl Messages {
    pub(crate) fn of(first: PendingPublish) -> Self {
        Self { bytes: first.publish.payload.len(), first, more: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        1 + self.more.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PendingPublish> {
        once(&self.first).chain(&self.more)
    }
}

/// Counts the publishes of one publisher that wait or are in flight, and their bytes.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    pub(crate) publishes: AtomicU64,
    pub(crate) bytes: AtomicUsize,
}

/// A publish that has no result yet. Reports the result to the publisher as its [`Reply`] says.
pub(crate) struct PendingPublish {
    pub(crate) publish: Publish,
    /// Numbers the publishes of this node; a part of the message's id.
    pub(crate) number: u64,
    reply: Option<Reply>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    in_flight: Arc<InFlight>,
}

impl PendingPublish {
    /// Counts as in flight from now on.
    pub(crate) fn new(
        publish: Publish,
        number: u64,
        reply: Reply,
        subscribers: Arc<[Arc<dyn Subscriber>]>,
        in_flight: Arc<InFlight>,
    ) -> Self {
        in_flight.publishes.fetch_add(1, Ordering::Relaxed);
        in_flight.bytes.fetch_add(publish.payload.len(), Ordering::Relaxed);
        Self { publish, number, reply: Some(reply), subscribers, in_flight }
    }

    pub(crate) fn complete(&mut self, result: PublishResult) {
        let Some(reply) = self.reply.take() else { return };
        self.in_flight.publishes.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.bytes.fetch_sub(self.publish.payload.len(), Ordering::Relaxed);
        reply.report(&self.subscribers, self.publish.room.clone(), result);
    }
}

impl Drop for PendingPublish {
    fn drop(&mut self) {
        self.complete(Err(BrokerError::Unavailable));
    }
}

/// A session that enters or leaves a room.
#[derive(Debug)]
pub(crate) struct PresenceChange {
    pub(crate) membership: Membership,
    /// The owner that writes the entry. A leave removes only an entry of the same owner.
    pub(crate) owner: NodeId,
    /// `None`: the session leaves.
    pub(crate) enter: Option<PresenceEntry>,
    /// Whether members are sent an event, if this is a user's first or last session.
    pub(crate) announce: bool,
}

/// A session in a room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Membership {
    pub(crate) room: Room,
    pub(crate) session: SessionId,
}

/// What Redis stores about a session that is present.
#[derive(Debug)]
pub(crate) struct PresenceEntry {
    /// Made by [`envelope::presence_payload`](crate::envelope::presence_payload).
    pub(crate) payload: Vec<u8>,
    /// Whether its leave will be announced.
    pub(crate) announce_leave: bool,
    /// How long it stays unless it is renewed; `None`: until it leaves.
    pub(crate) lease: Option<Duration>,
}

/// Called with the result of a presence command.
pub(crate) type Completion = Box<dyn FnOnce(Result<(), BrokerError>) + Send>;

/// A session's change in a room.
pub(crate) struct PresenceCommand {
    pub(crate) change: PresenceChange,
    completion: Option<Completion>,
}

impl PresenceCommand {
    pub(crate) fn new(change: PresenceChange, completion: Completion) -> Self {
        Self { change, completion: Some(completion) }
    }

    pub(crate) fn complete(&mut self, result: Result<(), BrokerError>) {
        if let Some(completion) = self.completion.take() {
            completion(result);
        }
    }
}

impl Drop for PresenceCommand {
    fn drop(&mut self) {
        self.complete(Err(BrokerError::Unavailable));
    }
}
