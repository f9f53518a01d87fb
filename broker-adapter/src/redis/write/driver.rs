//! `PublisherDriver`: sends what waits in the publisher's queue over one connection. What waits together goes as one
//! pipeline, with a few pipelines in flight: an idle publisher adds no delay, and a busy one needs no round trip per
//! command.

use crate::{
    BrokerError,
    redis::{
        ConnectionStatus, Driver, GRACE, HOME, NodeContext, OpenConnection, Partition, QueuedCommand, RefusalClass,
        Remedy, Signals, WriteCommand, scripts::is_forgotten, write::batch,
    },
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use redis::{Pipeline, PushInfo, RedisResult, Value};
use std::{
    future::pending,
    mem::{replace, take},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

/// At most this many commands in one pipeline. In longer ones the cost per command no longer falls.
const BATCH: usize = 256;
/// At most this many pipelines in flight: enough that Redis never waits for the next one.
const BATCHES: usize = 4;
/// A reply that takes longer counts as missing: with the wait in the queue, publishers get their result within a
/// second.
const REPLY_MAX: Duration = Duration::from_millis(750);
/// How often Redis is asked whether it takes writes, once that is in doubt.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Sends the commands of one publisher.
pub(crate) struct PublisherDriver {
    pub(crate) status: Arc<ConnectionStatus>,
    pub(crate) queue: mpsc::Receiver<QueuedCommand>,
    /// Redis takes no writes of this node.
    pub(crate) is_refused: Arc<AtomicBool>,
    /// Redis has refused a command, and no probe has shown since that it takes writes.
    pub(crate) is_doubtful: bool,
    /// The partitions of the master.
    pub(crate) partitions: watch::Receiver<Vec<Partition>>,
    pub(crate) context: Arc<NodeContext>,
}

/// The calls of one pipeline with Redis's replies; `None`: the replies did not come in time.
type Replied = (Vec<WriteCommand>, Option<RedisResult<Vec<Value>>>);

impl Driver for PublisherDriver {
    /// The deadline is REPLY_MAX and GRACE in `send`; the client library's must not come before it.
    const RESPONSE_MAX: Duration = REPLY_MAX.saturating_mul(4);

    fn push_handler(&mut self, _signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        Box::new(|_| {})
    }

    fn drive<'a>(&'a mut self, connection: OpenConnection, signals: &'a Signals) -> BoxFuture<'a, ()> {
        Box::pin(self.write(connection, signals))
    }

    /// Refuses what was queued while the connection went down: dropped commands report an error.
    fn idle(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { while self.queue.recv().await.is_some() {} })
    }
}

impl PublisherDriver {
    async fn write(&mut self, mut connection: OpenConnection, signals: &Signals) {
        let mut running = FuturesOrdered::new();
        // Calls whose script Redis has forgotten.
        let mut again: Vec<WriteCommand> = Vec::new();
        let mut next = Vec::with_capacity(BATCH);
        signals.synced.notify_one();
        let mut probes = interval(PROBE_EVERY);
        // While nothing is refused nobody waits for a tick, and the ticks that pass then must not all come afterwards.
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // These calls are sent again in their order, before anything new, so that each room keeps its order.
            if !again.is_empty() && running.is_empty() {
                if self.context.builder.scripts.load(&mut connection.conn).await.is_err() {
                    signals.lost.notify_one();
                    return pending().await;
                }
                running.push_back(self.send(&connection, take(&mut again)));
            }
            tokio::select! {
                biased;
                Some(replied) = running.next(), if !running.is_empty() => self.settle(replied, &mut again, signals),
                _ = probes.tick(), if self.is_doubtful => {
                    let partition = self.partitions.borrow().first().copied().unwrap_or(HOME);
                    let probes = self.context.builder.write_probes(&connection.server.fence, partition);
                    running.push_back(self.send(&connection, probes.map(WriteCommand::Probe).into()));
                }
                count = self.queue.recv_many(&mut next, BATCH), if running.len() < BATCHES && again.is_empty() => {
                    if count == 0 {
                        return pending().await;
                    }
                    // If the connection is not up any more, dropping the commands refuses them.
                    if self.status.is_up() {
                        let fresh = replace(&mut next, Vec::with_capacity(BATCH));
                        let calls = calls_in_time(fresh, !running.is_empty());
                        if !calls.is_empty() {
                            running.push_back(self.send(&connection, calls));
                        }
                    }
                    next.clear();
                }
            }
        }
    }

    /// Builds one pipeline; the future sends it when it is first polled.
    fn send(&self, connection: &OpenConnection, calls: Vec<WriteCommand>) -> BoxFuture<'static, Replied> {
        let mut pipe = Pipeline::with_capacity(calls.len());
        for call in &calls {
            pipe.add_command(call.cmd(&self.context.builder, &connection.server.fence));
        }
        let mut conn = connection.conn.clone();
        Box::pin(async move {
            let replies = {
                let mut sending = pin!(conn.send_packed_commands(&pipe, 0, calls.len()));
                match timeout(REPLY_MAX, &mut sending).await {
                    Ok(replies) => Some(replies),
                    Err(_) => timeout(GRACE, sending).await.ok(),
                }
            };
            (calls, replies)
        })
    }

    /// Completes the calls of one pipeline. Calls whose script Redis has forgotten are moved to `again`, in order.
    fn settle(&mut self, (calls, replies): Replied, again: &mut Vec<WriteCommand>, signals: &Signals) {
        let replies = match replies {
            Some(Ok(replies)) => replies,
            // Without replies the calls are dropped, and so report an error.
            Some(Err(_)) => return signals.lost.notify_one(),
            None => {
                self.doubt(true);
                // Redis may let writes wait, and so the probes. Whether it is alive the supervisor asks.
                if !matches!(calls[..], [WriteCommand::Probe(_), ..]) {
                    signals.late.notify_one();
                }
                return;
            }
        };
        // Only probes end a doubt: with a full memory, or without one of the rights, some writes succeed.
        if let [WriteCommand::Probe(_), WriteCommand::Probe(_)] = calls[..] {
            self.is_doubtful = replies.iter().any(is_refused);
            self.is_refused.store(self.is_doubtful, Ordering::Relaxed);
        }
        for (call, reply) in calls.into_iter().zip(replies) {
            if is_forgotten(&reply) {
                again.push(call);
                continue;
            }
            batch::refuse_overtaken(again, &call);
            let result = match reply {
                Value::ServerError(error) => {
                    match RefusalClass::of(&error).remedy() {
                        Some(Remedy::Reconnect) => signals.lost.notify_one(),
                        Some(Remedy::RefreshTopology) => signals.events.refresh.notify_one(),
                        None => {}
                    }
                    Err(self.context.refusals.of(&error))
                }
                Value::Array(mut parts) if parts.last().is_some_and(is_refused) => {
                    // The script has done its work, except what can be refused without harm to the caller.
                    if let Some(Value::ServerError(error)) = parts.pop() {
                        self.context.refusals.of(&error);
                        self.doubt(false);
                    }
                    Ok(parts.pop().unwrap_or(Value::Nil))
                }
                reply => Ok(reply),
            };
            match &result {
                Err(BrokerError::NotWritable) => self.doubt(true),
                // It may be about one key only; the probe finds out.
                Err(BrokerError::Misconfigured) => self.doubt(false),
                _ => {}
            }
            call.complete(result);
        }
    }

    /// Has Redis asked whether it takes writes. `is_refused`: until its reply it counts as if it did not.
    fn doubt(&mut self, is_refused: bool) {
        self.is_doubtful = true;
        self.is_refused.fetch_or(is_refused, Ordering::Relaxed);
    }
}

/// Whether Redis refuses a command, or one that its script has left to the end.
fn is_refused(reply: &Value) -> bool {
    match reply {
        Value::ServerError(_) => true,
        Value::Array(parts) => parts.last().is_some_and(is_refused),
        _ => false,
    }
}

/// Packs commands into calls, and refuses those that have waited for too long. If nothing is in flight (`busy` is
/// false), they did not wait for Redis but for this process, and the wait is over.
fn calls_in_time(mut commands: Vec<QueuedCommand>, busy: bool) -> Vec<WriteCommand> {
    let now = Instant::now();
    for late in commands.extract_if(.., |queued| busy && now.duration_since(queued.since) >= REPLY_MAX) {
        late.command.complete(Err(BrokerError::Overloaded));
    }
    batch::calls(commands)
}
