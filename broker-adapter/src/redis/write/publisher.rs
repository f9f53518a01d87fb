//! `Publisher`: takes commands for one master and queues them in the order of the calls. Never waits: if the queue is
//! full or the connection is not up, the command is refused at once.

use crate::{
    BrokerError, Publish, Reply,
    redis::{
        ConnectionStatus, InFlight, Messages, NodeContext, Partition, PendingPublish, PublisherDriver, QueuedCommand,
        WriteCommand,
    },
};
use redis::{Cmd, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot, watch,
};

/// Commands that may wait: half a second's worth of publishes with history.
const QUEUE: usize = 16 * 1024;
/// Entries of the queue that are kept free of publishes, so that a flood of publishes does not keep heartbeats out.
const RESERVED: usize = 1024;
/// Bytes of payload that may wait or be in flight.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// The queue of commands for one master.
pub(crate) struct Publisher {
    pub(crate) status: Arc<ConnectionStatus>,
    queue: mpsc::Sender<QueuedCommand>,
    pub(crate) in_flight: Arc<InFlight>,
    /// Redis takes no writes of this node.
    pub(crate) is_refused: Arc<AtomicBool>,
    pub(crate) context: Arc<NodeContext>,
}

/// A command that was not taken, and why. The caller completes it.
pub(crate) type RefusedCommand = (WriteCommand, BrokerError);

impl Publisher {
    /// The publisher, and the driver that sends its commands.
    pub(crate) fn new(
        status: Arc<ConnectionStatus>,
        partitions: watch::Receiver<Vec<Partition>>,
        context: Arc<NodeContext>,
    ) -> (Self, PublisherDriver) {
        let (queue, commands) = mpsc::channel(QUEUE);
        let is_refused = Arc::new(AtomicBool::new(false));
        let driver = PublisherDriver {
            status: Arc::clone(&status),
            queue: commands,
            is_refused: Arc::clone(&is_refused),
            is_doubtful: false,
            partitions,
            context: Arc::clone(&context),
        };
        (Self { status, queue, in_flight: Arc::default(), is_refused, context }, driver)
    }

    pub(crate) fn publish(&self, publish: Publish, reply: Reply) {
        let NodeContext { numbers, subscribers, .. } = &*self.context;
        let (number, in_flight) = (numbers.fetch_add(1, Ordering::Relaxed), Arc::clone(&self.in_flight));
        let mut pending = PendingPublish::new(publish, number, reply, Arc::clone(subscribers), in_flight);
        if !self.status.is_up() {
            return pending.complete(Err(self.status.away()));
        }
        if self.in_flight.bytes.load(Ordering::Relaxed) > QUEUE_BYTES || self.queue.capacity() <= RESERVED {
            return pending.complete(Err(BrokerError::Overloaded));
        }
        self.send_or_complete(WriteCommand::Publish(Messages::of(pending)));
    }

    /// Queues any command at once; the future waits for the reply.
    pub(crate) fn submit(&self, cmd: Cmd) -> impl Future<Output = Result<Value, BrokerError>> + use<> {
        let (reply, result) = oneshot::channel();
        self.send_or_complete(WriteCommand::Other { cmd, reply });
        async { result.await.unwrap_or(Err(BrokerError::Unavailable)) }
    }

    fn send_or_complete(&self, command: WriteCommand) {
        if let Some((command, why)) = self.send(command) {
            command.complete(Err(why));
        }
    }

    /// Queues a command, or returns it.
    pub(crate) fn send(&self, command: WriteCommand) -> Option<RefusedCommand> {
        if !self.status.is_up() {
            return Some((command, self.status.away()));
        }
        match self.queue.try_send(QueuedCommand { command, since: Instant::now() }) {
            Ok(()) => None,
            Err(TrySendError::Full(queued)) => Some((queued.command, BrokerError::Overloaded)),
            Err(TrySendError::Closed(queued)) => Some((queued.command, BrokerError::Unavailable)),
        }
    }
}
