//! One connection to Redis and the task that keeps it: connects, probes, drops, connects again, as `supervisor.rs`
//! says. What the connection is for is the [`Carrier`]'s business.

use super::{
    publisher::GRACE,
    script::{Fence, Scripts},
    supervisor::{CONNECT_MAX, DEAD_AFTER, Input, State, Step, Supervisor},
    target::Target,
};
use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, PushInfo, PushKind, RedisError, RedisResult, Value,
    aio::{MultiplexedConnection, SendError},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use std::{
    future::{Future, pending},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{sleep_until, timeout},
};

/// The kernel gives a connection up when the peer has acknowledged nothing for so long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that may wait in the connection's write buffer before the next batch waits: a full batch of usual messages.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// No connection to Redis could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, wrong password, no RESP3 (Redis 6 is the oldest with it), no right to a command, …
    #[error("Redis at {address}: {why}")]
    Refused {
        /// Host and port.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// The address is that of a replica, which would take messages and keep them to itself.
    #[error("Redis at {address} is a replica, not the master")]
    Replica {
        /// Host and port.
        address: String,
    },
    /// The [`Config`] cannot be used.
    #[error(transparent)]
    Config(#[from] super::config::ConfigError),
}

/// What other tasks see of a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: String,
    up: AtomicBool,
    connected: AtomicU64,
    /// The server that the last connection led to, and the fence of that server's memory.
    last: watch::Sender<Option<(ConnectionInfo, Fence)>>,
    /// Counts how often it came up.
    ups: watch::Sender<u64>,
    bell: Arc<Bell>,
}

/// Rings for the tasks that watch over the connections of one address.
#[derive(Debug, Default)]
pub(super) struct Bell {
    doubt: Notify,
    risen: Notify,
}

impl Bell {
    /// Waits until an answer shows that rooms are not where they are thought to be.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Waits until a connection has come up.
    pub(super) async fn risen(&self) {
        self.risen.notified().await;
    }
}

impl Link {
    pub(super) fn new(name: String, bell: Arc<Bell>) -> Self {
        let (ups, last) = (watch::Sender::new(0), watch::Sender::new(None));
        let (up, connected) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { name, up, connected, last, ups, bell }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Connections made after the first one.
    pub(super) fn reconnects(&self) -> u64 {
        self.connected.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Of the last connection.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.last.borrow().as_ref().map(|(_, fence)| fence.clone())
    }

    /// Changes with each connection that is made.
    pub(super) fn connections(&self) -> watch::Receiver<Option<(ConnectionInfo, Fence)>> {
        self.last.subscribe()
    }

    /// The server of the last connection.
    pub(super) fn server(&self) -> Option<ConnectionInfo> {
        self.last.borrow().as_ref().map(|(server, _)| server.clone())
    }

    pub(super) async fn wait_until_up(&self) {
        // The sender lives as long as `self`.
        let _ = self.ups.subscribe().wait_for(|ups| *ups > 0).await;
    }

    fn connected(&self, on: &Connected) {
        self.connected.fetch_add(1, Ordering::Relaxed);
        self.last.send_replace(Some((on.server.clone(), on.fence.clone())));
    }

    /// As if a connection had been made to a server with this run id.
    #[cfg(test)]
    pub(super) fn leads_to(&self, run_id: &str) {
        let server = redis::IntoConnectionInfo::into_connection_info("redis://127.0.0.1/").unwrap();
        self.last.send_replace(Some((server, Fence::new(run_id))));
    }

    fn enter(&self, state: State) {
        let up = state == State::Up;
        if self.up.swap(up, Ordering::AcqRel) != up && up {
            self.ups.send_modify(|ups| *ups += 1);
            self.bell.risen.notify_one();
        }
    }
}

/// A connection that is ready for use.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) conn: MultiplexedConnection,
    pub(super) fence: Fence,
    server: ConnectionInfo,
    /// `ROLE`, which also tells when a master was demoted; `PING` where that is forbidden.
    probe: &'static str,
}

/// What a [`Carrier`] and the connection itself have to say about it.
#[derive(Debug, Default)]
pub(super) struct Signals {
    synced: Notify,
    late: Notify,
    lost: Notify,
    /// Something came in since the last look.
    heard: AtomicBool,
    bell: Arc<Bell>,
}

impl Signals {
    fn new(bell: Arc<Bell>) -> Self {
        Self { bell, ..Self::default() }
    }

    /// Rooms are not where they are thought to be.
    pub(super) fn doubt(&self) {
        self.bell.doubt.notify_one();
    }

    /// Everything that it is for is in force again.
    pub(super) fn synced(&self) {
        self.synced.notify_one();
    }

    /// A command was not answered in its time.
    pub(super) fn late(&self) {
        self.late.notify_one();
    }

    fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    fn has_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// The connection is of no use any more.
    pub(super) fn lost(&self) {
        self.lost.notify_one();
    }

    async fn next(&self) -> Input {
        tokio::select! {
            biased;
            () = self.lost.notified() => Input::Lost,
            () = self.synced.notified() => Input::Synced,
            () = self.late.notified() => Input::Late,
        }
    }
}

/// What a connection is for.
pub(super) trait Carrier: Send {
    /// Takes what Redis sends unasked; called in the connection's own task, must not block.
    fn receiver(&mut self, signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync>;

    /// How long a command may take.
    fn answer_max(&self) -> Duration;

    /// Works on a connection until dropped.
    fn carry<'a>(&'a mut self, on: Connected, signals: &'a Signals) -> BoxFuture<'a, ()>;

    /// Passes the time without a connection until dropped.
    fn idle(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }
}

/// The settings of every connection, the pool's too.
pub(super) fn client(server: ConnectionInfo) -> RedisResult<Client> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(3);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive).set_user_timeout(TCP_USER_TIMEOUT);
    Client::open(server.set_tcp_settings(tcp))
}

/// Asks anew who the master is, and connects to that one.
async fn open(
    target: Target,
    scripts: &Scripts,
    answer_max: Duration,
    receive: impl Fn(PushInfo) + Send + Sync + 'static,
) -> Result<Connected, ConnectError> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(answer_max))
        .set_write_backpressure_boundary(WRITE_BUFFER_BYTES)
        .set_push_sender(move |push| {
            receive(push);
            Ok::<(), SendError>(())
        });
    let mut address = target.name();
    let handshake = async {
        let server = target.find().await?;
        address = server.addr().to_string();
        let conn = async {
            let mut conn = client(server.clone())?.get_multiplexed_async_connection_with_config(&settings).await?;
            let role = conn.send_packed_command(&redis::cmd("ROLE")).await?;
            let info = conn.send_packed_command(redis::cmd("INFO").arg("server")).await?;
            scripts.load(&mut conn).await?;
            Ok((conn, role, info))
        };
        let conn = conn.await.map_err(|why: RedisError| why.to_string())?;
        Ok((server, conn))
    };
    let done = timeout(CONNECT_MAX, handshake).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    let (server, (conn, role, info)) = match done {
        Ok(done) => done,
        Err(why) => return Err(ConnectError::Refused { address, why }),
    };
    if is_replica(&role) {
        return Err(ConnectError::Replica { address });
    }
    let probe = if matches!(role, Value::ServerError(_)) { "PING" } else { "ROLE" };
    // A proxy may hide the run id, or a user have no right to it; then restarts are only told apart by the keys that
    // they lose.
    let info: String = redis::from_redis_value(info).unwrap_or_default();
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or("-");
    Ok(Connected { conn, fence: Fence::new(run_id.trim()), server, probe })
}

fn is_replica(role: &Value) -> bool {
    let Value::Array(parts) = role else { return false };
    matches!(parts.first(), Some(Value::BulkString(name)) if name != b"master")
        || matches!(parts.first(), Some(Value::SimpleString(name)) if name != "master")
}

/// Asks whether the connection lives and still leads to a master. How long an answer may take is the supervisor's
/// business, so this one waits.
async fn probe(mut on: Connected) -> Input {
    on.conn.set_response_timeout(DEAD_AFTER * 2);
    match on.conn.send_packed_command(&redis::cmd(on.probe)).await {
        Ok(role) if is_replica(&role) => Input::Lost,
        Ok(_) => Input::Answered,
        Err(_) => Input::Lost,
    }
}

/// Keeps a connection until `stop` is true. `first` hears how the first attempt went.
pub(super) async fn keep(
    (link, target, scripts): (Arc<Link>, Target, &'static Scripts),
    mut carrier: impl Carrier,
    first: oneshot::Sender<Result<(), ConnectError>>,
    mut stop: watch::Receiver<bool>,
) {
    let supervisor = Supervisor::new(Instant::now());
    let mut watcher = Watcher {
        target,
        scripts,
        link: Arc::clone(&link),
        supervisor,
        seen: State::Down,
        first: Some(first),
        silent: true,
    };
    let work = async {
        loop {
            let (on, signals) = watcher.connect(&mut carrier).await;
            let work = carrier.carry(on.clone(), &signals);
            watcher.watch(on, &signals, work).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    link.enter(State::Down);
}

struct Watcher {
    target: Target,
    scripts: &'static Scripts,
    link: Arc<Link>,
    supervisor: Supervisor,
    /// The state that was last shown.
    seen: State,
    first: Option<oneshot::Sender<Result<(), ConnectError>>>,
    /// Whether the log knows that it cannot be reached.
    silent: bool,
}

impl Watcher {
    /// Tries until there is a connection.
    async fn connect(&mut self, carrier: &mut impl Carrier) -> (Connected, Arc<Signals>) {
        loop {
            let step = self.supervisor.step(Instant::now(), jitter());
            self.show();
            match step {
                Step::Wait(until) => {
                    let target = &mut self.target;
                    let waited = async {
                        tokio::select! {
                            () = sleep_until(until.into()) => false,
                            _ = target.moved() => true,
                        }
                    };
                    if idle_until(carrier, waited).await {
                        self.supervisor.on(Input::Moved, Instant::now(), jitter());
                    }
                }
                Step::Connect => {
                    let signals = Arc::new(Signals::new(self.link.bell.clone()));
                    let (ears, receive) = (Arc::clone(&signals), carrier.receiver(&signals));
                    let (target, moving) = (self.target.clone(), &mut self.target);
                    let attempt =
                        open(target, self.scripts, carrier.answer_max(), move |push: PushInfo| match push.kind {
                            PushKind::Disconnection => ears.lost(),
                            _ => {
                                ears.heard();
                                receive(push);
                            }
                        });
                    moving.settle();
                    let attempt = async {
                        tokio::select! {
                            result = attempt => (false, result),
                            address = moving.moved() => {
                                (true, Err(ConnectError::Refused { address, why: "it is the master only now".into() }))
                            }
                        }
                    };
                    let (moved, result) = idle_until(carrier, attempt).await;
                    if let Some(on) = self.tried(result) {
                        return (on, signals);
                    }
                    if moved {
                        self.supervisor.on(Input::Moved, Instant::now(), jitter());
                    }
                }
                Step::Probe | Step::Drop => {}
            }
        }
    }

    fn tried(&mut self, result: Result<Connected, ConnectError>) -> Option<Connected> {
        let (input, on, outcome) = match result {
            Ok(on) => (Input::Connected, Some(on), Ok(())),
            Err(error) => {
                if self.silent {
                    tracing::debug!(connection = %self.link.name, %error, "Redis cannot be reached");
                } else {
                    tracing::warn!(connection = %self.link.name, %error, "Redis cannot be reached; trying again");
                }
                self.silent = true;
                (Input::Refused, None, Err(error))
            }
        };
        if let Some(on) = &on {
            self.silent = false;
            self.link.connected(on);
        }
        self.supervisor.on(input, Instant::now(), jitter());
        self.show();
        if let Some(first) = self.first.take() {
            // The one who asked may have stopped waiting.
            let _ = first.send(outcome);
        }
        on
    }

    /// Watches over a connection while `work` uses it; returns when it is to be dropped.
    async fn watch(&mut self, on: Connected, signals: &Signals, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        let mut asked: Option<BoxFuture<'static, Input>> = None;
        loop {
            let step = self.supervisor.step(Instant::now(), jitter());
            self.show();
            let until = match step {
                Step::Wait(until) => until,
                Step::Probe => {
                    asked = Some(Box::pin(probe(on.clone())));
                    continue;
                }
                Step::Drop | Step::Connect => return,
            };
            let answer = async {
                match &mut asked {
                    Some(answer) => answer.await,
                    None => pending().await,
                }
            };
            let input = tokio::select! {
                biased;
                input = signals.next() => input,
                input = answer => input,
                master = self.target.moved() => {
                    if master == on.server.addr().to_string() {
                        continue;
                    }
                    Input::Moved
                }
                () = &mut work => Input::Lost,
                // A probe's answer that waits behind a flood of messages is no missing one.
                () = sleep_until(until.into()) => match &mut asked {
                    None => continue,
                    Some(_) if signals.has_heard() => Input::Answered,
                    Some(answer) => match timeout(GRACE, answer).await {
                        Ok(input) => input,
                        Err(_) => continue,
                    },
                },
            };
            if input == Input::Answered {
                asked = None;
            }
            self.supervisor.on(input, Instant::now(), jitter());
            self.show();
        }
    }

    /// Shows a change of state to the other tasks, and to the log.
    fn show(&mut self) {
        let (was, now) = (self.seen, self.supervisor.state());
        if was == now {
            return;
        }
        self.seen = now;
        self.link.enter(now);
        let connection = &self.link.name;
        match now {
            State::Up => tracing::info!(%connection, reconnects = self.link.reconnects(), "Redis connection up"),
            State::Suspect => tracing::warn!(%connection, "Redis connection suspect: it answers late"),
            State::Down if was != State::Connecting => tracing::warn!(%connection, "Redis connection down"),
            _ => tracing::debug!(%connection, state = ?now, "Redis connection"),
        }
    }
}

/// Lets the carrier idle until something else is done.
async fn idle_until<T>(carrier: &mut impl Carrier, done: impl Future<Output = T>) -> T {
    let idle = async {
        carrier.idle().await;
        pending().await
    };
    tokio::select! {
        biased;
        done = done => done,
        never = idle => never,
    }
}

/// 0 to 1.
fn jitter() -> f64 {
    crate::cursor::random_u64() as f64 / u64::MAX as f64
}
