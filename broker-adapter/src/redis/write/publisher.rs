//! The command connection: everything that this node writes, in the order in which it was asked for. What waits is
//! collected into one pipeline (`batch.rs`), with a few pipelines in flight: an idle publisher adds no delay, a busy one
//! no round trips. Never waits for itself: a full queue and a backplane that is not up are answered at once.

use crate::redis::{
    commands::{self, Maker},
    connection::keep::{Carrier, Connected, Link, Signals},
    presence::roster::Attend,
    write::batch::{self, Call},
};
use crate::{BrokerError, Publish, PublishResult, Reply, Room, Subscriber};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use redis::{Cmd, PushInfo, RedisError, ServerError, ServerErrorKind, Value};
use std::{
    future::pending,
    mem::take,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Commands in one pipeline: above it the cost per command no longer falls.
const BATCH: usize = 256;
/// Pipelines in flight: enough that Redis never waits for the next one.
const BATCHES: usize = 4;
/// Commands that may wait: half a second's worth of publishes with history.
const QUEUE: usize = 16 * 1024;
/// Places in the queue that publishes leave to others: a flood must not keep a heartbeat from being heard.
const RESERVED: usize = 1024;
/// Bytes of payload that may wait or be in flight.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// An answer that takes longer is none: with the wait in the queue, publishers hear within a second.
const ANSWER_MAX: Duration = Duration::from_millis(750);
/// After that, time for an answer that has arrived and was not looked at, because this process had no processor.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// Something to write.
pub(crate) struct Command {
    pub(crate) what: What,
    pub(crate) since: Instant,
}

/// What is asked.
pub(crate) enum What {
    Publish {
        publish: Publish,
        number: u64,
        answer: Answer,
    },
    Attend(Attend),
    /// Anything rare.
    Other {
        cmd: Cmd,
        answer: oneshot::Sender<Result<Value, BrokerError>>,
    },
}

/// Tells whoever asked what became of a publish, once; dropped without a word it says "not available".
pub(crate) struct Answer {
    reply: Option<(Reply, Room)>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    waiting: Arc<Waiting>,
    bytes: usize,
}

/// What waits or is in flight.
#[derive(Debug, Default)]
struct Waiting {
    publishes: AtomicU64,
    bytes: AtomicUsize,
}

impl Answer {
    pub(crate) fn give(mut self, outcome: PublishResult) {
        self.tell(outcome);
    }

    /// For commands that nobody sends.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self { reply: None, subscribers: Arc::new([]), waiting: Arc::default(), bytes: 0 }
    }

    fn tell(&mut self, outcome: PublishResult) {
        let Some((reply, room)) = self.reply.take() else { return };
        self.waiting.publishes.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        match reply {
            Reply::Nobody => {}
            Reply::OnFailure(..) if outcome.is_ok() => {}
            Reply::Ticket(who, ticket) | Reply::OnFailure(who, ticket) => {
                if let Some(subscriber) = self.subscribers.get(usize::from(who.0)) {
                    subscriber.on_published(ticket, room, outcome);
                }
            }
            // A waiter that went away does not want to know.
            Reply::Waiter(waiter) => drop(waiter.send(outcome)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.tell(Err(BrokerError::Unavailable));
    }
}

/// The end that takes commands.
pub(crate) struct Publisher {
    pub(crate) link: Arc<Link>,
    queue: mpsc::Sender<Command>,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    waiting: Arc<Waiting>,
    /// Shared with the node's other publishers.
    numbers: Arc<AtomicU64>,
    maker: Maker,
}

impl Publisher {
    /// The two ends: one for the broker, one for the task that keeps the connection.
    pub(crate) fn new(
        (link, numbers): (Arc<Link>, Arc<AtomicU64>),
        subscribers: Arc<[Arc<dyn Subscriber>]>,
        maker: Maker,
    ) -> (Self, Pipe) {
        let (queue, commands) = mpsc::channel(QUEUE);
        let pipe = Pipe { link: Arc::clone(&link), commands, maker: maker.clone() };
        (Self { link, queue, subscribers, waiting: Arc::default(), numbers, maker }, pipe)
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.waiting.publishes.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, publish: Publish, reply: Reply) {
        let bytes = publish.payload.len();
        self.waiting.publishes.fetch_add(1, Ordering::Relaxed);
        let waiting = self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let answer = Answer {
            reply: Some((reply, publish.room.clone())),
            subscribers: Arc::clone(&self.subscribers),
            waiting: Arc::clone(&self.waiting),
            bytes,
        };
        if !self.link.is_up() {
            return answer.give(Err(BrokerError::Unavailable));
        }
        if waiting > QUEUE_BYTES || self.queue.capacity() <= RESERVED {
            return answer.give(Err(BrokerError::Overloaded));
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if let Some((What::Publish { answer, .. }, error)) = self.send(What::Publish { publish, number, answer }) {
            answer.give(Err(error));
        }
    }

    /// Takes a session's change. One that comes back was not taken.
    pub(crate) fn update_presence(&self, attend: Attend) -> Option<(Attend, BrokerError)> {
        match self.send(What::Attend(attend)) {
            Some((What::Attend(attend), error)) => Some((attend, error)),
            _ => None,
        }
    }

    /// Runs any command in its turn.
    pub(crate) async fn run(&self, cmd: Cmd) -> Result<Value, BrokerError> {
        self.begin(cmd).await
    }

    /// Sends a control message to the nodes that listen now.
    pub(crate) fn send_control(
        &self,
        channel: &str,
        message: &[u8],
    ) -> impl Future<Output = Result<Value, BrokerError>> + use<> {
        self.begin(self.maker.send(channel, message))
    }

    /// As [`Publisher::run`], but the command has its turn from now on.
    pub(crate) fn begin(&self, cmd: Cmd) -> impl Future<Output = Result<Value, BrokerError>> + use<> {
        let (answer, outcome) = oneshot::channel();
        let refused = self.send(What::Other { cmd, answer }).map(|(_, error)| error);
        async move {
            match refused {
                Some(error) => Err(error),
                None => outcome.await.unwrap_or(Err(BrokerError::Unavailable)),
            }
        }
    }

    /// Gives back what cannot be taken, and why.
    fn send(&self, what: What) -> Option<(What, BrokerError)> {
        if !self.link.is_up() {
            return Some((what, BrokerError::Unavailable));
        }
        match self.queue.try_send(Command { what, since: Instant::now() }) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(command)) => Some((command.what, BrokerError::Overloaded)),
            Err(mpsc::error::TrySendError::Closed(command)) => Some((command.what, BrokerError::Unavailable)),
        }
    }
}

/// The end that writes.
pub(crate) struct Pipe {
    link: Arc<Link>,
    commands: mpsc::Receiver<Command>,
    maker: Maker,
}

/// `None`: not in time.
type Answered = (Vec<Call>, Option<Result<Vec<Value>, RedisError>>);

impl Carrier for Pipe {
    fn receiver(&mut self, _signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        Box::new(|_| {})
    }

    fn answer_max(&self) -> Duration {
        // Judged here, not by the client library: see GRACE.
        ANSWER_MAX * 4
    }

    fn carry<'a>(&'a mut self, on: Connected, signals: &'a Signals) -> BoxFuture<'a, ()> {
        Box::pin(self.write(on, signals))
    }

    /// What got into the queue while the connection went down is refused, not kept for later.
    fn idle(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { while self.commands.recv().await.is_some() {} })
    }
}

impl Pipe {
    async fn write(&mut self, mut on: Connected, signals: &Signals) {
        self.maker.fence = on.fence.clone();
        let mut running = FuturesOrdered::new();
        let mut again: Vec<Call> = Vec::new();
        let mut next = Vec::with_capacity(BATCH);
        signals.synced();
        loop {
            if !again.is_empty() && running.is_empty() {
                if self.maker.scripts.load(&mut on.conn).await.is_err() {
                    signals.lost();
                    return pending().await;
                }
                self.send(&mut running, &on, take(&mut again));
            }
            tokio::select! {
                biased;
                Some(answered) = running.next(), if !running.is_empty() => settle(answered, &mut again, signals),
                count = self.commands.recv_many(&mut next, BATCH), if running.len() < BATCHES && again.is_empty() => {
                    if count == 0 {
                        return pending().await;
                    }
                    // A connection that is not up any more refuses what had been taken before.
                    if self.link.is_up() {
                        let fresh = std::mem::replace(&mut next, Vec::with_capacity(BATCH));
                        let calls = calls(fresh, !running.is_empty());
                        self.send(&mut running, &on, calls);
                    }
                    next.clear();
                }
            }
        }
    }

    fn send(&self, running: &mut FuturesOrdered<BoxFuture<'static, Answered>>, on: &Connected, calls: Vec<Call>) {
        if calls.is_empty() {
            return;
        }
        let mut pipe = redis::Pipeline::with_capacity(calls.len());
        for call in &calls {
            pipe.add_command(call.command(&self.maker));
        }
        let mut conn = on.conn.clone();
        running.push_back(Box::pin(async move {
            let result = {
                let mut answer = pin!(conn.send_packed_commands(&pipe, 0, calls.len()));
                match timeout(ANSWER_MAX, &mut answer).await {
                    Ok(result) => Some(result),
                    Err(_) => timeout(GRACE, answer).await.ok(),
                }
            };
            (calls, result)
        }));
    }
}

/// What is still in time, as calls. With nothing in flight the wait was not for Redis, and is over.
fn calls(mut commands: Vec<Command>, busy: bool) -> Vec<Call> {
    let now = Instant::now();
    for late in commands.extract_if(.., |command| busy && now.duration_since(command.since) >= ANSWER_MAX) {
        late.refuse(&BrokerError::Overloaded);
    }
    batch::calls(commands)
}

/// Hands out what Redis answered. Calls whose script Redis has forgotten go to `again`, in order.
fn settle((calls, result): Answered, again: &mut Vec<Call>, signals: &Signals) {
    let values = match result {
        Some(Ok(values)) => values,
        // Dropped calls answer for themselves.
        Some(Err(_)) => return signals.lost(),
        None => return signals.late(),
    };
    for (call, value) in calls.into_iter().zip(values) {
        if commands::is_forgotten(&value) {
            again.push(call);
            continue;
        }
        let value = match value {
            Value::ServerError(error) => {
                match whereabouts(&error) {
                    Some(Whereabouts::Nowhere) => signals.lost(),
                    Some(Whereabouts::Elsewhere) => signals.doubt(),
                    Some(Whereabouts::Moving) | None => {}
                }
                Err(refusal(&error))
            }
            value => Ok(value),
        };
        call.settle(value);
    }
}

impl Command {
    fn refuse(self, why: &BrokerError) {
        match self.what {
            What::Publish { answer, .. } => answer.give(Err(why.clone())),
            What::Attend(attend) => attend.settle(Err(why.clone())),
            What::Other { answer, .. } => drop(answer.send(Err(why.clone()))),
        }
    }
}

/// What an error says about where a room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// This server is no master, or not yet: another connection may find one.
    Nowhere,
    /// Other servers have the room, or nobody has it for now.
    Elsewhere,
    /// The room is on its way from one server to another.
    Moving,
}

/// `None`: the error is about something else.
pub(crate) fn whereabouts(error: &ServerError) -> Option<Whereabouts> {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    match error.kind()? {
        ReadOnly | BusyLoading | MasterDown => Some(Whereabouts::Nowhere),
        Moved | ClusterDown => Some(Whereabouts::Elsewhere),
        Ask | TryAgain => Some(Whereabouts::Moving),
        _ => None,
    }
}

/// What an error answer means to whoever asked.
pub(crate) fn refusal(error: &ServerError) -> BrokerError {
    match error.code() {
        _ if whereabouts(error).is_some() => BrokerError::Unavailable,
        "OOM" => BrokerError::Overloaded,
        // Neither room names nor payloads are in Redis's error texts, but commands' names are.
        code => BrokerError::Protocol(format!("{code} {}", error.details().unwrap_or_default())),
    }
}
