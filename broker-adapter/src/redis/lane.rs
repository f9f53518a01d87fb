//! One subscriber connection: what Redis pushes goes straight to the followers, in the connection's own task and
//! without blocking; what `interest.rs` has queued goes out in batches, and what it lets through of comparing heads.
//! Never publishes.

use super::{
    interest::{Batch, Interest, Pace, STEP},
    link::{Carrier, Connected, Link, Signals},
    names::{Names, Part},
    publisher::{is_elsewhere, refusal},
    script::{self, Maker},
};
use crate::{
    BrokerError, Cursor, Event, Retention, Room, Subscriber, SubscriberId,
    envelope::{self, Envelope},
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesOrdered,
};
use redis::{PushInfo, PushKind, RedisResult, Value};
use std::{
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
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
pub(super) struct Lane {
    pub(super) link: Arc<Link>,
    interest: Mutex<Interest>,
    due: Notify,
    names: Names,
    subscribers: Arc<[Arc<dyn Subscriber>]>,
    unreadable: Arc<AtomicU64>,
    /// Channels of notes that this lane follows.
    notes: Vec<String>,
    pace: Pace,
}

/// What every lane of a node shares.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) names: Names,
    pub(super) subscribers: Arc<[Arc<dyn Subscriber>]>,
    pub(super) unreadable: Arc<AtomicU64>,
    pub(super) pace: Pace,
}

impl Lane {
    pub(super) fn new(number: usize, common: Common, notes: Vec<String>) -> Self {
        Self {
            link: Arc::new(Link::new(format!("lane {number}"))),
            interest: Mutex::default(),
            due: Notify::new(),
            names: common.names,
            subscribers: common.subscribers,
            unreadable: common.unreadable,
            notes,
            pace: common.pace,
        }
    }

    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rooms(&self) -> usize {
        self.interest().rooms()
    }

    /// Follows from now on; the receiver hears once deliveries are certain.
    pub(super) fn follow(
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

    pub(super) fn unfollow(&self, who: SubscriberId, room: &Room) {
        self.interest().unfollow(who, room);
        self.due.notify_one();
    }

    /// Reads a room's head, and begins the room if there is none.
    pub(super) fn head(
        &self,
        room: &Room,
        retention: Retention,
    ) -> oneshot::Receiver<Result<Option<Cursor>, BrokerError>> {
        let (answer, heard) = oneshot::channel();
        self.interest().head(room, retention, answer);
        self.due.notify_one();
        heard
    }

    /// Nobody is answered any more.
    pub(super) fn close(&self) {
        *self.interest() = Interest::default();
    }

    fn receive(&self, connection: u64, push: PushInfo) {
        if push.kind != PushKind::Message {
            return;
        }
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(bytes))) = (parts.next(), parts.next()) else {
            return self.unreadable();
        };
        match (self.names.room_of(&channel), envelope::decode(&Bytes::from(bytes))) {
            (Some(room), Ok(Envelope::Event(event))) => {
                self.interest().deliver(connection, room, &event, &self.subscribers);
            }
            (Some(room), Ok(Envelope::Messages(list))) => {
                let mut interest = self.interest();
                for publication in list {
                    interest.deliver(connection, room, &Event::Message(publication), &self.subscribers);
                }
            }
            (None, Ok(Envelope::Note(note))) => self.subscribers.iter().for_each(|s| s.told(note.clone())),
            _ => self.unreadable(),
        }
    }

    fn unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}

/// A lane in the hands of the task that keeps its connection.
pub(super) struct Rails {
    pub(super) lane: Arc<Lane>,
    pub(super) maker: Maker,
    connection: u64,
}

impl Rails {
    pub(super) fn new(lane: Arc<Lane>, maker: Maker) -> Self {
        Self { lane, maker, connection: 0 }
    }
}

impl Carrier for Rails {
    fn receiver(&mut self) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        self.connection += 1;
        let (lane, connection) = (Arc::clone(&self.lane), self.connection);
        Box::new(move |push| lane.receive(connection, push))
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
    /// Ends only with an error.
    async fn follow(&mut self, mut on: Connected, signals: &Signals) -> RedisResult<()> {
        self.maker.fence = on.fence.clone();
        if !self.lane.notes.is_empty() {
            on.conn.subscribe(&self.lane.notes).await?;
        }
        self.lane.interest().begin(self.connection);
        let mut running = FuturesOrdered::new();
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while running.len() < BATCHES {
                let Some(batch) = self.lane.interest().batch() else { break };
                // Polled first in this order, so their commands reach the connection in it.
                running.push_back(send(on.clone(), self.maker.clone(), batch));
            }
            tokio::select! {
                biased;
                Some(answer) = running.next(), if !running.is_empty() => {
                    let heads = read(&answer?, signals);
                    if self.lane.interest().settle(heads, &self.lane.subscribers) {
                        signals.synced();
                    }
                }
                () = self.lane.due.notified(), if running.len() < BATCHES => {}
                _ = steps.tick() => self.lane.interest().step(self.lane.pace),
            }
        }
    }
}

/// Sends one batch, everything at once and in order. Its answers come in the order of the batches.
async fn send(on: Connected, maker: Maker, batch: Batch) -> RedisResult<Vec<Value>> {
    let channels = |rooms: &[Room]| rooms.iter().map(|r| maker.names.of(Part::Channel, r)).collect::<Vec<_>>();
    let (subscribe, unsubscribe) = (channels(&batch.subscribe), channels(&batch.unsubscribe));
    let (mut first, mut second, mut third) = (on.conn.clone(), on.conn.clone(), on.conn);
    let mut heads = redis::Pipeline::with_capacity(batch.heads.len());
    for (room, retention) in &batch.heads {
        heads.add_command(maker.head(room, *retention));
    }
    let subscribing: OptionFuture<_> = (!subscribe.is_empty()).then(|| first.subscribe(subscribe)).into();
    let reading: OptionFuture<_> =
        (!batch.heads.is_empty()).then(|| second.send_packed_commands(&heads, 0, batch.heads.len())).into();
    let unsubscribing: OptionFuture<_> = (!unsubscribe.is_empty()).then(|| third.unsubscribe(unsubscribe)).into();
    // Polled in this order, each hands its bytes to the connection before it waits.
    let (subscribed, mut values, unsubscribed) = tokio::join!(biased; subscribing, reading, unsubscribing);
    subscribed.transpose()?;
    unsubscribed.transpose()?;
    if values.as_ref().is_some_and(|v| v.as_ref().is_ok_and(|v| v.iter().any(script::is_forgotten))) {
        script::load(&mut second).await?;
        values = Some(second.send_packed_commands(&heads, 0, batch.heads.len()).await);
    }
    values.unwrap_or_else(|| Ok(Vec::new()))
}

fn read(values: &[Value], signals: &Signals) -> Vec<Result<Cursor, BrokerError>> {
    let read = |value: &Value| match value {
        Value::ServerError(error) => {
            if is_elsewhere(error) {
                signals.lost();
            }
            Err(refusal(error))
        }
        value => script::head(value).ok_or_else(|| BrokerError::Protocol("a head that is none".into())),
    };
    values.iter().map(read).collect()
}
