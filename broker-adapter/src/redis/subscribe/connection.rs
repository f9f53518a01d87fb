//! One subscriber connection: what Redis pushes goes straight to the followers, in the connection's own task and
//! without blocking; what `interest.rs` has queued goes out in batches, and what it lets through of comparing heads.
//! Never publishes.

use crate::redis::{
    commands::{self, Maker},
    connection::keep::{Carrier, Connected, Link, Signals},
    keys::{Names, Part, Partition},
    master::Partitions,
    subscribe::channels::{subscribe, unsubscribe},
    subscribe::interest::{Batch, Interest, Moving, Pace, STEP},
    write::publisher::{Whereabouts, refusal, whereabouts},
};
use crate::{
    BrokerError, Cursor, NodeId, Retention, Room, RoomEvent, Subscriber, SubscriberId,
    envelope::{self, Envelope},
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesOrdered,
};
use redis::{ErrorKind, PushInfo, PushKind, RedisResult, Value};
use std::{
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{MissedTickBehavior, interval},
};

/// Batches in flight. With 512 rooms each, 100,000 rooms are back in about half a second.
const BATCHES: usize = 8;
/// A batch that takes longer ends the connection. Whether Redis lives at all is the probe's business.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// See the module's head.
pub(crate) struct Lane {
    pub(crate) link: Arc<Link>,
    interest: Mutex<Interest>,
    due: Notify,
    more_notes: Notify,
    common: Common,
    /// Whether it is the one that hears controls.
    controls: bool,
}

/// What every lane of a node shares.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) names: Names,
    pub(crate) node: NodeId,
    pub(crate) subscribers: Arc<[Arc<dyn Subscriber>]>,
    pub(crate) unreadable: Arc<AtomicU64>,
    pub(crate) partitions: Partitions,
    pub(crate) pace: Pace,
}

impl Lane {
    pub(crate) fn new(link: Arc<Link>, common: Common, controls: bool) -> Self {
        Self { link, interest: Mutex::default(), due: Notify::new(), more_notes: Notify::new(), common, controls }
    }

    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rooms(&self) -> usize {
        self.interest().rooms()
    }

    /// Follows from now on; the receiver hears once deliveries are certain.
    pub(crate) fn follow(
        &self,
        who: SubscriberId,
        room: &Room,
        retention: Option<Retention>,
    ) -> oneshot::Receiver<Result<Option<Cursor>, BrokerError>> {
        let (joined, heard) = oneshot::channel();
        self.interest().follow(who, room, retention, joined);
        self.due.notify_one();
        heard
    }

    pub(crate) fn unfollow(&self, who: SubscriberId, room: &Room) {
        self.interest().unfollow(who, room);
        self.due.notify_one();
    }

    /// Reads a room's head, and begins the room if there is none.
    pub(crate) fn head(
        &self,
        room: &Room,
        retention: Retention,
    ) -> oneshot::Receiver<Result<Option<Cursor>, BrokerError>> {
        let (answer, heard) = oneshot::channel();
        self.interest().head(room, retention, answer);
        self.due.notify_one();
        heard
    }

    /// There are more partitions in which controls may come.
    pub(crate) fn hear_more(&self) {
        self.more_notes.notify_one();
    }

    /// Forgets a partition that has moved, and says who follows what in it.
    pub(crate) fn give_up(&self, partition: Partition) -> Moving {
        self.interest().give_up(|room| Partition::of(room) == partition)
    }

    /// Takes over what another lane has given up.
    pub(crate) fn adopt(&self, moving: Moving) {
        self.interest().adopt(moving);
        self.due.notify_one();
    }

    /// Nobody is answered any more.
    pub(crate) fn close(&self) {
        *self.interest() = Interest::default();
    }

    fn receive(&self, connection: u64, push: PushInfo) {
        if !matches!(push.kind, PushKind::Message | PushKind::SMessage) {
            return;
        }
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) = (parts.next(), parts.next()) else {
            return self.unreadable();
        };
        match (self.common.names.room_of(&channel), envelope::decode(&Bytes::from(bytes))) {
            (Some(room), Ok(Envelope::Room(event))) => {
                self.interest().deliver(connection, room, &event, &self.common.subscribers);
            }
            (Some(room), Ok(Envelope::Messages(list))) => {
                let mut interest = self.interest();
                for publication in list {
                    interest.deliver(connection, room, &RoomEvent::Message(publication), &self.common.subscribers);
                }
            }
            (None, Ok(Envelope::Control(message))) => {
                self.common.subscribers.iter().for_each(|s| s.on_control(message.clone()));
            }
            _ => self.unreadable(),
        }
    }

    fn unreadable(&self) {
        self.common.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}

/// A lane in the hands of the task that keeps its connection.
pub(crate) struct Rails {
    pub(crate) lane: Arc<Lane>,
    pub(crate) maker: Maker,
    connection: u64,
    /// Channels of a cluster that this connection has asked to leave and not heard of yet.
    leaving: Arc<AtomicI64>,
}

impl Rails {
    pub(crate) fn new(lane: Arc<Lane>, maker: Maker) -> Self {
        Self { lane, maker, connection: 0, leaving: Arc::default() }
    }
}

impl Carrier for Rails {
    fn receiver(&mut self, signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        self.connection += 1;
        self.leaving = Arc::default();
        let (lane, connection, leaving) = (Arc::clone(&self.lane), self.connection, Arc::clone(&self.leaving));
        let signals = Arc::clone(signals);
        Box::new(move |push| {
            // One that was not asked for: the slot has moved, and the client library takes it for the answer to
            // another command. Nothing on this connection can be relied on.
            if push.kind == PushKind::SUnsubscribe && leaving.fetch_sub(1, Ordering::AcqRel) <= 0 {
                signals.doubt();
                signals.lost();
            }
            lane.receive(connection, push);
        })
    }

    fn answer_max(&self) -> Duration {
        ANSWER_MAX
    }

    fn carry<'a>(&'a mut self, on: Connected, signals: &'a Signals) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.follow(on, signals).await.is_err() {
                signals.lost();
            }
            pending::<()>().await;
        })
    }
}

impl Rails {
    async fn hear_notes(&self, on: &mut Connected) -> RedisResult<()> {
        if !self.lane.controls {
            return Ok(());
        }
        let Common { names, node, partitions, .. } = &self.lane.common;
        let partitions = partitions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        subscribe(&mut on.conn, &self.maker, names.controls(*node, &partitions)).await
    }

    /// Ends only with an error.
    async fn follow(&mut self, mut on: Connected, signals: &Signals) -> RedisResult<()> {
        self.maker.fence = on.fence.clone();
        self.hear_notes(&mut on).await?;
        self.lane.interest().begin(self.connection);
        let mut running = FuturesOrdered::new();
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while running.len() < BATCHES {
                let Some(batch) = self.lane.interest().batch() else { break };
                // Polled first in this order, so their commands reach the connection in it.
                if self.maker.is_sharded() {
                    self.leaving.fetch_add(batch.unsubscribe.len() as i64, Ordering::AcqRel);
                }
                running.push_back(send(on.clone(), self.maker.clone(), batch));
            }
            tokio::select! {
                biased;
                Some(answer) = running.next(), if !running.is_empty() => {
                    let heads = read(&answer?, signals)?;
                    if self.lane.interest().settle(heads, &self.lane.common.subscribers) {
                        signals.synced();
                    }
                }
                () = self.lane.due.notified(), if running.len() < BATCHES => {}
                () = self.lane.more_notes.notified() => self.hear_notes(&mut on).await?,
                _ = steps.tick() => self.lane.interest().step(self.lane.common.pace),
            }
        }
    }
}

/// Sends one batch, everything at once and in order. Its answers come in the order of the batches.
async fn send(on: Connected, maker: Maker, batch: Batch) -> RedisResult<Vec<Value>> {
    let named = |rooms: &[Room]| rooms.iter().map(|r| maker.names.of(Part::Channel, r)).collect::<Vec<_>>();
    let channels = (named(&batch.subscribe), named(&batch.unsubscribe));
    let (mut first, mut second, mut third) = (on.conn.clone(), on.conn.clone(), on.conn);
    let mut heads = redis::Pipeline::with_capacity(batch.heads.len());
    for (room, retention) in &batch.heads {
        heads.add_command(maker.head(room, *retention));
    }
    let subscribing: OptionFuture<_> =
        (!channels.0.is_empty()).then(|| subscribe(&mut first, &maker, channels.0)).into();
    let reading: OptionFuture<_> =
        (!batch.heads.is_empty()).then(|| second.send_packed_commands(&heads, 0, batch.heads.len())).into();
    let unsubscribing: OptionFuture<_> =
        (!channels.1.is_empty()).then(|| unsubscribe(&mut third, &maker, channels.1)).into();
    // Polled in this order, each hands its bytes to the connection before it waits.
    let (subscribed, mut values, unsubscribed) = tokio::join!(biased; subscribing, reading, unsubscribing);
    subscribed.transpose()?;
    unsubscribed.transpose()?;
    if values.as_ref().is_some_and(|v| v.as_ref().is_ok_and(|v| v.iter().any(commands::is_forgotten))) {
        maker.scripts.load(&mut second).await?;
        values = Some(second.send_packed_commands(&heads, 0, batch.heads.len()).await);
    }
    values.unwrap_or_else(|| Ok(Vec::new()))
}

/// Fails with the whole connection if the rooms are not here.
fn read(values: &[Value], signals: &Signals) -> RedisResult<Vec<Result<Cursor, BrokerError>>> {
    let read = |value: &Value| match value {
        Value::ServerError(error) => match whereabouts(error) {
            Some(Whereabouts::Nowhere | Whereabouts::Elsewhere) => {
                signals.doubt();
                Err(error.clone().into())
            }
            Some(Whereabouts::Moving) | None => Ok(Err(refusal(error))),
        },
        Value::Push { .. } => Err((ErrorKind::UnexpectedReturnType, "the answer to something else").into()),
        value => Ok(commands::head(value).ok_or_else(|| BrokerError::Protocol("a head that is none".into()))),
    };
    values.iter().map(read).collect()
}
