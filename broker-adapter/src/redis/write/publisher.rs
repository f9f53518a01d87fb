//! `Publisher`: takes commands for one master and queues them in the order in which they were asked for. Never waits:
//! if the queue is full or the connection is not up, the command is refused at once.

use crate::{
    BrokerError, Publish, Reply, Subscriber,
    redis::{
        commands::{CommandBuilder, NumberedPublish},
        connection::status::ConnectionStatus,
        write::{
            command::{Command, InFlight, PendingPublish, PresenceCommand, QueuedCommand, Refused},
            driver::PublisherDriver,
        },
    },
};
use redis::{Cmd, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait: half a second's worth of publishes with history.
const QUEUE: usize = 16 * 1024;
/// Entries of the queue that publishes leave free: a flood of publishes must not keep heartbeats out.
const RESERVED: usize = 1024;
/// Bytes of payload that may wait or be in flight.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// The queue of commands for one master.
pub(crate) struct Publisher {
    pub(crate) status: Arc<ConnectionStatus>,
    queue: mpsc::Sender<QueuedCommand>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    in_flight: Arc<InFlight>,
    /// Numbers the messages of the whole node; shared with its other publishers.
    numbers: Arc<AtomicU64>,
    builder: CommandBuilder,
}

impl Publisher {
    /// The publisher, and the driver that sends its commands.
    pub(crate) fn new(
        status: Arc<ConnectionStatus>,
        numbers: Arc<AtomicU64>,
        subscribers: Arc<[Arc<dyn Subscriber>]>,
        builder: CommandBuilder,
    ) -> (Self, PublisherDriver) {
        let (queue, commands) = mpsc::channel(QUEUE);
        let driver = PublisherDriver::new(Arc::clone(&status), commands, builder.clone());
        (Self { status, queue, subscribers, in_flight: Arc::default(), numbers, builder }, driver)
    }

    /// Publishes that wait or are in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.publishes()
    }

    pub(crate) fn publish(&self, publish: Publish, reply: Reply) {
        let pending = PendingPublish::new(
            reply,
            publish.room.clone(),
            publish.payload.len(),
            Arc::clone(&self.subscribers),
            Arc::clone(&self.in_flight),
        );
        if !self.status.is_up() {
            return pending.complete(Err(BrokerError::Unavailable));
        }
        if self.in_flight.bytes() > QUEUE_BYTES || self.queue.capacity() <= RESERVED {
            return pending.complete(Err(BrokerError::Overloaded));
        }
        let message = NumberedPublish { publish, number: self.numbers.fetch_add(1, Ordering::Relaxed) };
        if let Some(refused) = self.send(Command::Publish { message, pending }) {
            refused.complete();
        }
    }

    /// Queues a session's change. The caller completes a refused one.
    pub(crate) fn submit_presence(&self, command: PresenceCommand) -> Option<Refused> {
        self.send(Command::Presence(command))
    }

    /// Queues a control message to the nodes that are subscribed to the channel now.
    pub(crate) fn send_control(
        &self,
        channel: &str,
        message: &[u8],
    ) -> impl Future<Output = Result<Value, BrokerError>> + use<> {
        self.submit(self.builder.send(channel, message))
    }

    /// Queues any command at once; the future waits for the reply.
    pub(crate) fn submit(&self, cmd: Cmd) -> impl Future<Output = Result<Value, BrokerError>> + use<> {
        let (reply, result) = oneshot::channel();
        if let Some(refused) = self.send(Command::Other { cmd, reply }) {
            refused.complete();
        }
        async { result.await.unwrap_or(Err(BrokerError::Unavailable)) }
    }

    fn send(&self, command: Command) -> Option<Refused> {
        if !self.status.is_up() {
            return Some(Refused { command, why: BrokerError::Unavailable });
        }
        let (queued, why) = match self.queue.try_send(QueuedCommand { command, since: Instant::now() }) {
            Ok(()) => return None,
            Err(mpsc::error::TrySendError::Full(queued)) => (queued, BrokerError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(queued)) => (queued, BrokerError::Unavailable),
        };
        Some(Refused { command: queued.command, why })
    }
}
