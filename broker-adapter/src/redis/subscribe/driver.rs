//! `SubscriberDriver`: uses one subscriber connection. Sends what the interest has queued in batches, and compares
//! heads at the interest's pace.

use crate::{
    BrokerError, Cursor, Room,
    redis::{
        CommandBuilder, ComparisonPace, Driver, Fence, NodeContext, OpenConnection, Part, Partition, PubSubConnection,
        RefusalClass, Signals, commands, errors::Refusals, scripts::is_forgotten, subscribe::interest::STEP,
        subscribe::interest::SubscriptionBatch,
    },
};
use futures_util::{
    StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesOrdered,
};
use redis::{ErrorKind, Pipeline, PushInfo, PushKind, RedisResult, Value, aio::MultiplexedConnection};
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
    time::{MissedTickBehavior, interval},
};

/// At most this many batches in flight. With 512 rooms in each, 100,000 rooms are subscribed again in about half a
/// second.
const BATCHES: usize = 8;

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
        let (mut conn, fence) = (open.conn, open.server.fence);
        let connection = Arc::clone(&self.connection);
        let NodeContext { config, builder, subscribers, refusals, .. } = &*connection.context;
        let pace = ComparisonPace::new(config.subscriber_connections, config.sweep);
        self.subscribe_controls(&mut conn).await?;
        connection.interest.lock().begin(self.number);
        let mut running = FuturesOrdered::new();
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while running.len() < BATCHES {
                let Some(batch) = connection.interest.lock().batch() else { break };
                // Counted before the command is sent, so that its confirmation always finds the count.
                if builder.scripts.is_sharded {
                    self.leaving.fetch_add(batch.unsubscribe.len() as i64, Ordering::AcqRel);
                }
                // The batches are first polled in this order, so their commands reach the connection in it.
                running.push_back(send(conn.clone(), fence.clone(), builder.clone(), batch));
            }
            let more_partitions = OptionFuture::from(self.controls.as_mut().map(watch::Receiver::changed));
            tokio::select! {
                biased;
                Some(replies) = running.next(), if !running.is_empty() => {
                    let (replies, versions) = replies?;
                    let heads = heads(&replies, signals, refusals)?;
                    let versions = versions.iter().map(commands::presence_version).collect();
                    if connection.interest.lock().settle(heads, versions, subscribers) {
                        signals.synced.notify_one();
                    }
                }
                () = connection.queued.notified(), if running.len() < BATCHES => {}
                Some(Ok(())) = more_partitions => self.subscribe_controls(&mut conn).await?,
                _ = steps.tick() => connection.interest.lock().step(pace),
            }
        }
    }

    async fn subscribe_controls(&mut self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let Some(partitions) = &mut self.controls else { return Ok(()) };
        let CommandBuilder { keys, node, scripts } = &self.connection.context.builder;
        let channels = keys.controls(*node, &partitions.borrow_and_update());
        subscribe(conn, scripts.is_sharded, channels).await
    }
}

/// Sends one batch: SUBSCRIBE, the commands for heads and versions, UNSUBSCRIBE, in this order and without waiting in
/// between. Returns the replies with the heads, and those with the versions.
async fn send(
    conn: MultiplexedConnection,
    fence: Fence,
    builder: CommandBuilder,
    batch: SubscriptionBatch,
) -> RedisResult<(Vec<Value>, Vec<Value>)> {
    let channels = |rooms: &[Room]| rooms.iter().map(|r| builder.keys.of(Part::CHANNEL, r)).collect::<Vec<_>>();
    let (new, old) = (channels(&batch.subscribe), channels(&batch.unsubscribe));
    let (mut first, mut second, mut third) = (conn.clone(), conn.clone(), conn);
    let (count, is_sharded) = (batch.heads.len() + batch.versions.len(), builder.scripts.is_sharded);
    let mut reads = Pipeline::with_capacity(count);
    for (room, retention) in &batch.heads {
        reads.add_command(builder.head(&fence, room, *retention));
    }
    for room in &batch.versions {
        reads.add_command(builder.presence_version(room));
    }
    let subscribing: OptionFuture<_> = (!new.is_empty()).then(|| subscribe(&mut first, is_sharded, new)).into();
    let reading: OptionFuture<_> = (count > 0).then(|| second.send_packed_commands(&reads, 0, count)).into();
    let unsubscribing: OptionFuture<_> = (!old.is_empty()).then(|| unsubscribe(&mut third, is_sharded, old)).into();
    // Polled in this order, each hands its bytes to the connection before it waits.
    let (subscribed, mut replies, unsubscribed) = tokio::join!(biased; subscribing, reading, unsubscribing);
    subscribed.transpose()?;
    unsubscribed.transpose()?;
    if replies.as_ref().is_some_and(|r| r.as_ref().is_ok_and(|r| r.iter().any(is_forgotten))) {
        builder.scripts.load(&mut second).await?;
        replies = Some(second.send_packed_commands(&reads, 0, count).await);
    }
    let mut heads = replies.unwrap_or_else(|| Ok(Vec::new()))?;
    let versions = heads.split_off(batch.heads.len().min(heads.len()));
    Ok((heads, versions))
}

/// Reads the heads of one batch. Fails, and so ends the connection, if this server does not have the rooms.
fn heads(replies: &[Value], signals: &Signals, refusals: &Refusals) -> RedisResult<Vec<Result<Cursor, BrokerError>>> {
    let head = |reply: &Value| match reply {
        Value::ServerError(error) if RefusalClass::of(error).remedy().is_some() => {
            signals.events.refresh.notify_one();
            Err(error.clone().into())
        }
        Value::ServerError(error) => Ok(Err(refusals.of(error))),
        Value::Push { .. } => Err((ErrorKind::UnexpectedReturnType, "the reply to another command").into()),
        reply => Ok(commands::head(reply).ok_or_else(|| BrokerError::Protocol("malformed head".into()))),
    };
    replies.iter().map(head).collect()
}

/// Subscribes channels, and returns when every one is confirmed: all with one command, or in a cluster with one command
/// each. The channels of one SSUBSCRIBE must share a slot, and the client library does not know how many confirmations
/// one brings.
async fn subscribe(conn: &mut MultiplexedConnection, is_sharded: bool, channels: Vec<String>) -> RedisResult<()> {
    if is_sharded {
        return one_by_one(conn, "SSUBSCRIBE", &PushKind::SSubscribe, &channels).await;
    }
    conn.subscribe(channels).await
}

/// Unsubscribes channels as [`subscribe`] subscribes them.
async fn unsubscribe(conn: &mut MultiplexedConnection, is_sharded: bool, channels: Vec<String>) -> RedisResult<()> {
    if is_sharded {
        return one_by_one(conn, "SUNSUBSCRIBE", &PushKind::SUnsubscribe, &channels).await;
    }
    conn.unsubscribe(channels).await
}

/// Fails unless each reply is the confirmation of its own channel. When a slot moves, the server sends unsubscriptions
/// of its own, and the client library takes one for the reply to whatever command is waiting.
async fn one_by_one(
    conn: &mut MultiplexedConnection,
    command: &str,
    confirmation: &PushKind,
    channels: &[String],
) -> RedisResult<()> {
    let mut pipe = Pipeline::with_capacity(channels.len());
    for channel in channels {
        pipe.cmd(command).arg(channel);
    }
    let replies = conn.send_packed_commands(&pipe, 0, channels.len()).await?;
    for (channel, reply) in channels.iter().zip(replies) {
        match reply {
            Value::Push { kind, data }
                if kind == *confirmation
                    && matches!(data.first(), Some(Value::BulkString(name)) if name == channel.as_bytes()) => {}
            Value::ServerError(error) => return Err(error.into()),
            _ => return Err((ErrorKind::UnexpectedReturnType, "the reply to another command").into()),
        }
    }
    Ok(())
}
