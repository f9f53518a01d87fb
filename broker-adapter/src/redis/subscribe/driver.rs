//! `SubscriberDriver`: uses one subscriber connection. Sends what the interest has queued in batches, and compares
//! heads at the interest's pace.

use crate::{
    BrokerError, Room,
    redis::{
        CommandBuilder, ComparisonPace, ConnectError, Driver, Fence, NodeContext, OpenConnection, Part, Partition,
        PubSubConnection, RefusalClass, Signals, commands, errors::refusal_words, scripts::is_forgotten,
        subscribe::interest::BatchReplies, subscribe::interest::STEP, subscribe::interest::SubscriptionBatch,
    },
};
use futures_util::{
    StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesOrdered,
};
use redis::{ErrorKind, Pipeline, PushInfo, PushKind, RedisResult, ServerError, Value, aio::MultiplexedConnection};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, interval_at},
};

/// At most this many batches in flight. With 512 rooms in each, 100,000 rooms are subscribed again in about half a
/// second.
const BATCHES: usize = 8;
/// How often a node asks for its own channels again while Redis refuses them.
const CONTROLS_EVERY: Duration = Duration::from_secs(2);

/// Sends the commands of one [`PubSubConnection`].
pub(crate) struct SubscriberDriver {
    connection: Arc<PubSubConnection>,
    /// `Some` on the one connection of a master that receives control messages: the partitions in which they come.
    controls: Option<watch::Receiver<Vec<Partition>>>,
    /// Numbers the attempts to connect, so that pushes of an earlier connection are not delivered.
    number: u64,
    /// In a cluster: how many channels were unsubscribed whose confirmation has not come yet.
    leaving: Arc<AtomicI64>,
}

impl Driver for SubscriberDriver {
    /// A batch that takes longer ends the connection. The probe decides earlier whether Redis is alive at all.
    const RESPONSE_MAX: Duration = Duration::from_secs(5);

    fn push_handler(&mut self, signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        self.number += 1;
        self.leaving = Arc::default();
        let (connection, number, leaving) = (Arc::clone(&self.connection), self.number, Arc::clone(&self.leaving));
        let signals = Arc::clone(signals);
        Box::new(move |push| {
            // An unsubscription that was not asked for: a slot has moved. The client library takes it for the reply to
            // another command, so no reply on this connection can be relied on any more.
            if push.kind == PushKind::SUnsubscribe && leaving.fetch_sub(1, Ordering::AcqRel) <= 0 {
                signals.events.refresh.notify_one();
                signals.lost.notify_one();
            }
            connection.receive(number, push);
        })
    }

    fn drive<'a>(&'a mut self, connection: OpenConnection, signals: &'a Signals) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.subscribe(connection, signals).await.is_err() {
                signals.lost.notify_one();
            }
            pending::<()>().await;
        })
    }
}

impl SubscriberDriver {
    pub(crate) fn new(connection: Arc<PubSubConnection>, controls: Option<watch::Receiver<Vec<Partition>>>) -> Self {
        Self { connection, controls, number: 0, leaving: Arc::default() }
    }

    /// Sends batches for as long as the connection can be used. Ends only with an error.
    async fn subscribe(&mut self, open: OpenConnection, signals: &Signals) -> RedisResult<()> {
        let connection = Arc::clone(&self.connection);
        let NodeContext { config, builder, subscribers, .. } = &*connection.context;
        let pace = ComparisonPace::new(config.subscriber_connections, config.sweep);
        self.subscribe_controls(&open, signals).await?;
        connection.interest.lock().begin(self.number);
        let mut running = FuturesOrdered::new();
        let mut steps = interval(STEP);
        let mut again = interval_at(Instant::now() + CONTROLS_EVERY, CONTROLS_EVERY);
        for ticks in [&mut steps, &mut again] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            while running.len() < BATCHES {
                let Some(batch) = connection.interest.lock().batch() else { break };
                // Counted before the command is sent, so that its confirmation always finds the count.
                self.count_leaving(batch.unsubscribe.len() as i64);
                // The batches are first polled in this order, so their commands reach the connection in it.
                running.push_back(send(open.conn.clone(), open.server.fence.clone(), builder.clone(), batch));
            }
            let more_partitions = OptionFuture::from(self.controls.as_mut().map(watch::Receiver::changed));
            tokio::select! {
                biased;
                Some(replies) = running.next(), if !running.is_empty() => {
                    let replies = self.judge(replies?, signals)?;
                    if connection.interest.lock().settle(replies, subscribers) {
                        signals.synced.notify_one();
                    }
                }
                () = connection.queued.notified(), if running.len() < BATCHES => {}
                Some(Ok(())) = more_partitions => self.subscribe_controls(&open, signals).await?,
                _ = again.tick(), if connection.is_refused.load(Ordering::Relaxed) => {
                    self.subscribe_controls(&open, signals).await?;
                }
                _ = steps.tick() => connection.interest.lock().step(pace),
            }
        }
    }

    fn count_leaving(&self, count: i64) {
        if self.connection.context.builder.scripts.is_sharded {
            self.leaving.fetch_add(count, Ordering::AcqRel);
        }
    }

    /// Subscribes this node's own channels. If Redis refuses one, the node does not start, or counts as down later on,
    /// while its rooms are served.
    async fn subscribe_controls(&mut self, open: &OpenConnection, signals: &Signals) -> RedisResult<()> {
        let Some(partitions) = &mut self.controls else { return Ok(()) };
        let CommandBuilder { keys, node, scripts } = &self.connection.context.builder;
        let channels = keys.controls(*node, &partitions.borrow_and_update());
        let replies = subscribe(open.conn.clone(), scripts.is_sharded, channels).await?;
        let refused = replies.into_iter().flatten().next();
        self.connection.is_refused.store(refused.is_some(), Ordering::Relaxed);
        let Some(error) = refused else { return Ok(()) };
        // At the start the error goes to the caller, who connects again and again, and not to the log.
        let address = open.server.address.addr().to_string();
        let why = refusal_words(&error);
        let has_remedy = RefusalClass::of(&error).remedy().is_some();
        if has_remedy || !self.connection.status.set_first(Err(ConnectError::Refused { address, why })) {
            self.refusal(&error, signals)?;
        }
        Ok(())
    }

    /// Reads the replies to one batch. Fails, and so ends the connection, if this server does not have the rooms.
    fn judge(&self, replies: SentReplies, signals: &Signals) -> RedisResult<BatchReplies> {
        let verdict = |reply| match reply {
            Some(error) => self.refusal(&error, signals).map(Err),
            None => Ok(Ok(())),
        };
        let head = |reply| match reply {
            Value::ServerError(error) => self.refusal(&error, signals).map(Err),
            Value::Push { .. } => Err((ErrorKind::UnexpectedReturnType, "the reply to another command").into()),
            reply => Ok(commands::head(&reply).ok_or_else(|| BrokerError::Protocol("malformed head".into()))),
        };
        // A room that cannot be unsubscribed goes on, and what comes of it is dropped.
        for error in replies.unsubscribed.iter().flatten() {
            self.refusal(error, signals)?;
            self.count_leaving(-1);
        }
        let subscribed = replies.rooms.into_iter().zip(replies.subscribed.into_iter().map(verdict));
        Ok(BatchReplies {
            subscribed: subscribed.map(|(room, verdict)| Ok((room, verdict?))).collect::<RedisResult<_>>()?,
            heads: replies.heads.into_iter().map(head).collect::<RedisResult<_>>()?,
            versions: replies.versions.iter().map(commands::presence_version).collect(),
        })
    }

    /// What a caller gets for a refusal. Fails if another server may take the command.
    fn refusal(&self, error: &ServerError, signals: &Signals) -> RedisResult<BrokerError> {
        let why = self.connection.context.refusals.of(error);
        if RefusalClass::of(error).remedy().is_some() {
            signals.events.refresh.notify_one();
            return Err(error.clone().into());
        }
        Ok(why)
    }
}

/// For each channel: `None` is Redis's confirmation, `Some` its refusal.
type Confirmations = RedisResult<Vec<Option<ServerError>>>;

/// What Redis replies to one batch, in the order of the batch.
struct SentReplies {
    rooms: Vec<Room>,
    subscribed: Vec<Option<ServerError>>,
    heads: Vec<Value>,
    versions: Vec<Value>,
    unsubscribed: Vec<Option<ServerError>>,
}

/// Sends one batch: SUBSCRIBE, the commands for heads and versions, UNSUBSCRIBE, in this order and without waiting in
/// between.
async fn send(
    conn: MultiplexedConnection,
    fence: Fence,
    builder: CommandBuilder,
    batch: SubscriptionBatch,
) -> RedisResult<SentReplies> {
    let channels = |rooms: &[Room]| rooms.iter().map(|r| builder.keys.of(Part::CHANNEL, r)).collect::<Vec<_>>();
    let (new, old) = (channels(&batch.subscribe), channels(&batch.unsubscribe));
    let mut reader = conn.clone();
    let (count, is_sharded) = (batch.heads.len() + batch.versions.len(), builder.scripts.is_sharded);
    let mut reads = Pipeline::with_capacity(count);
    for (room, retention) in &batch.heads {
        reads.add_command(builder.head(&fence, room, *retention));
    }
    for room in &batch.versions {
        reads.add_command(builder.presence_version(room));
    }
    let (subscribing, unsubscribing) = (subscribe(conn.clone(), is_sharded, new), unsubscribe(conn, is_sharded, old));
    let reading: OptionFuture<_> = (count > 0).then(|| reader.send_packed_commands(&reads, 0, count)).into();
    // Polled in this order, each hands its bytes to the connection before it waits.
    let (subscribed, mut replies, unsubscribed) = tokio::join!(biased; subscribing, reading, unsubscribing);
    let (subscribed, unsubscribed) = (subscribed?, unsubscribed?);
    if replies.as_ref().is_some_and(|r| r.as_ref().is_ok_and(|r| r.iter().any(is_forgotten))) {
        builder.scripts.load(&mut reader).await?;
        replies = Some(reader.send_packed_commands(&reads, 0, count).await);
    }
    let mut heads = replies.unwrap_or_else(|| Ok(Vec::new()))?;
    let versions = heads.split_off(batch.heads.len().min(heads.len()));
    Ok(SentReplies { rooms: batch.subscribe, subscribed, heads, versions, unsubscribed })
}

/// Subscribes channels, each with a command of its own: Redis refuses a command as a whole, and the channels of one
/// SSUBSCRIBE would have to share a slot. Costs Redis 0.4 µs more for each channel (measured) than one command for all.
async fn subscribe(conn: MultiplexedConnection, is_sharded: bool, channels: Vec<String>) -> Confirmations {
    match is_sharded {
        true => one_by_one(conn, "SSUBSCRIBE", PushKind::SSubscribe, &channels).await,
        false => one_by_one(conn, "SUBSCRIBE", PushKind::Subscribe, &channels).await,
    }
}

/// Unsubscribes channels as [`subscribe`] subscribes them.
async fn unsubscribe(conn: MultiplexedConnection, is_sharded: bool, channels: Vec<String>) -> Confirmations {
    match is_sharded {
        true => one_by_one(conn, "SUNSUBSCRIBE", PushKind::SUnsubscribe, &channels).await,
        false => one_by_one(conn, "UNSUBSCRIBE", PushKind::Unsubscribe, &channels).await,
    }
}

/// Fails unless each reply is the confirmation of its own channel, or its refusal. When a slot moves, the server sends
/// unsubscriptions of its own, and the client library takes one for the reply to whatever command is waiting.
async fn one_by_one(
    mut conn: MultiplexedConnection,
    command: &str,
    confirmation: PushKind,
    channels: &[String],
) -> Confirmations {
    if channels.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = Pipeline::with_capacity(channels.len());
    for channel in channels {
        pipe.cmd(command).arg(channel);
    }
    let replies = conn.send_packed_commands(&pipe, 0, channels.len()).await?;
    let verdict = |(channel, reply): (&String, Value)| match reply {
        Value::Push { kind, data }
            if kind == confirmation
                && matches!(data.first(), Some(Value::BulkString(name)) if name == channel.as_bytes()) =>
        {
            Ok(None)
        }
        Value::ServerError(error) => Ok(Some(error)),
        _ => Err((ErrorKind::UnexpectedReturnType, "the reply to another command").into()),
    };
    channels.iter().zip(replies).map(verdict).collect()
}
