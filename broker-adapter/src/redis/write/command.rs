//! What waits in the publisher's queue: a command, and what is done with Redis's reply to it. Every command gets its
//! result exactly once; one that is dropped on its way gets [`BrokerError::Unavailable`].

use crate::{
    BrokerError, PublishResult, Reply, Room, Subscriber,
    redis::commands::{NumberedPublish, PresenceChange},
};
use redis::{Cmd, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::oneshot;

/// A command in the queue.
pub(crate) struct QueuedCommand {
    pub(crate) command: Command,
    /// When it was queued.
    pub(crate) since: Instant,
}

/// Something to write.
pub(crate) enum Command {
    Publish {
        message: NumberedPublish,
        pending: PendingPublish,
    },
    Presence(PresenceCommand),
    /// Everything rare: control messages, heartbeats, the removal of dead members.
    Other {
        cmd: Cmd,
        reply: oneshot::Sender<Result<Value, BrokerError>>,
    },
}

/// A command that was not taken.
pub(crate) struct Refused {
    pub(crate) command: Command,
    pub(crate) why: BrokerError,
}

impl Refused {
    /// Completes the command with the error.
    pub(crate) fn complete(self) {
        match self.command {
            Command::Publish { pending, .. } => pending.complete(Err(self.why)),
            Command::Presence(command) => command.complete(Err(self.why)),
            Command::Other { reply, .. } => drop(reply.send(Err(self.why))),
        }
    }
}

/// Counts the publishes of one publisher that wait or are in flight, and their bytes.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    publishes: AtomicU64,
    bytes: AtomicUsize,
}

impl InFlight {
    pub(crate) fn publishes(&self) -> u64 {
        self.publishes.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A publish without a result so far. Reports the result to the publisher as its [`Reply`] says.
pub(crate) struct PendingPublish {
    reply: Option<(Reply, Room)>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    in_flight: Arc<InFlight>,
    bytes: usize,
}

impl PendingPublish {
    /// Counts as in flight from now on, with `bytes` of payload.
    pub(crate) fn new(
        reply: Reply,
        room: Room,
        bytes: usize,
        subscribers: Arc<[Arc<dyn Subscriber>]>,
        in_flight: Arc<InFlight>,
    ) -> Self {
        in_flight.publishes.fetch_add(1, Ordering::Relaxed);
        in_flight.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { reply: Some((reply, room)), subscribers, in_flight, bytes }
    }

    pub(crate) fn complete(mut self, result: PublishResult) {
        self.report(result);
    }

    /// A publish without a publisher.
    #[cfg(test)]
    pub(crate) fn without_reply() -> Self {
        Self { reply: None, subscribers: Arc::new([]), in_flight: Arc::default(), bytes: 0 }
    }

    fn report(&mut self, result: PublishResult) {
        let Some((reply, room)) = self.reply.take() else { return };
        self.in_flight.publishes.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        reply.report(&self.subscribers, room, result);
    }
}

impl Drop for PendingPublish {
    fn drop(&mut self) {
        self.report(Err(BrokerError::Unavailable));
    }
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

    pub(crate) fn complete(mut self, result: Result<(), BrokerError>) {
        self.report(result);
    }

    fn report(&mut self, result: Result<(), BrokerError>) {
        if let Some(completion) = self.completion.take() {
            completion(result);
        }
    }
}

impl Drop for PresenceCommand {
    fn drop(&mut self) {
        self.report(Err(BrokerError::Unavailable));
    }
}
