//! The task that keeps one connection open: connects, probes, drops and connects again, as `supervisor.rs` says. A
//! [`Driver`] uses the connection, to write or to subscribe.

use crate::{
    BrokerError,
    redis::{
        ConnectError, ConnectionStatus, GRACE, NodeContext, OpenConnection, Signals, Target, connection::open::open,
        connection::supervisor::ConnectionAction, connection::supervisor::ConnectionState,
        connection::supervisor::Input, connection::supervisor::ReconnectSpread, connection::supervisor::Supervisor,
        errors::LinePace,
    },
};
use futures_util::future::{BoxFuture, OptionFuture};
use redis::{PushInfo, PushKind};
use std::{
    future::{Future, pending},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout, timeout_at},
};

/// Uses a connection for one purpose: to write, or to subscribe.
pub(crate) trait Driver: Send {
    /// How long the client library waits for a reply.
    const RESPONSE_MAX: Duration;

    /// Makes the function that takes what Redis sends unasked over the next connection. The function is called in the
    /// connection's own task and must not block.
    fn push_handler(&mut self, signals: &Arc<Signals>) -> Box<dyn Fn(PushInfo) + Send + Sync>;

    /// Uses a connection until the future is dropped.
    fn drive<'a>(&'a mut self, connection: OpenConnection, signals: &'a Signals) -> BoxFuture<'a, ()>;

    /// Runs while there is no connection, until the future is dropped.
    fn idle(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }
}

/// Keeps a connection to the target until `stop` is true.
pub(crate) async fn keep(
    status: Arc<ConnectionStatus>,
    target: Target,
    context: Arc<NodeContext>,
    mut driver: impl Driver,
    mut stop: watch::Receiver<bool>,
) {
    let supervisor = Supervisor::new(Instant::now());
    let mut task = ConnectionTask {
        status: &status,
        target,
        context,
        supervisor,
        shown: ConnectionState::Down,
        lines: ConnectionLines::new(),
    };
    let keeping = async {
        loop {
            let (connection, signals) = task.connect(&mut driver).await;
            let work = driver.drive(connection.clone(), &signals);
            task.supervise(connection, &signals, work).await;
        }
    };
    tokio::select! {
        () = keeping => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    status.set_state(ConnectionState::Down);
}

/// The task that keeps one connection.
struct ConnectionTask<'a> {
    status: &'a ConnectionStatus,
    target: Target,
    context: Arc<NodeContext>,
    supervisor: Supervisor,
    /// The state that other tasks and the log know.
    shown: ConnectionState,
    lines: ConnectionLines,
}

/// Which lines about one connection the log gets: one a second of each kind at most, however fast the connection comes
/// and goes. If it stays down, the last line says so all the same: it soon cannot be reached.
struct ConnectionLines {
    /// What the last line says.
    last: ConnectionState,
    down: LinePace,
    suspect: LinePace,
    unreachable: LinePace,
    /// The log has a warning that Redis cannot be reached, since the last connection.
    is_unreachable: bool,
}

impl ConnectionLines {
    /// The first failure is not logged: the status reports it.
    fn new() -> Self {
        let pace = LinePace::default;
        let (down, suspect, unreachable) = (pace(), pace(), pace());
        Self { last: ConnectionState::Down, down, suspect, unreachable, is_unreachable: true }
    }

    fn is_due(&mut self, state: ConnectionState, now: Instant) -> bool {
        let is_due = match state {
            // So a line that was left out is not followed by this one. It has the number of reconnects.
            ConnectionState::Up => self.last != state,
            ConnectionState::Suspect => self.suspect.is_due(now),
            ConnectionState::Down => self.down.is_due(now),
            ConnectionState::Connecting | ConnectionState::Syncing => false,
        };
        if is_due {
            self.last = state;
        }
        is_due
    }

    /// Once until the next connection.
    fn is_unreachable_due(&mut self, now: Instant) -> bool {
        let is_due = !self.is_unreachable && self.unreachable.is_due(now);
        if is_due {
            (self.last, self.is_unreachable) = (ConnectionState::Down, true);
        }
        is_due
    }
}

impl ConnectionTask<'_> {
    /// Tries until there is a connection.
    async fn connect(&mut self, driver: &mut impl Driver) -> (OpenConnection, Arc<Signals>) {
        loop {
            match self.step() {
                ConnectionAction::Wait(until) => {
                    let moved = timeout_at(until.into(), self.target.moved());
                    if idle_until(driver, moved).await.is_ok() {
                        self.input(Input::Moved);
                    }
                }
                ConnectionAction::Connect => {
                    if let Some(connected) = self.attempt(driver).await {
                        return connected;
                    }
                }
                ConnectionAction::Probe | ConnectionAction::Drop => {}
            }
        }
    }

    async fn attempt<D: Driver>(&mut self, driver: &mut D) -> Option<(OpenConnection, Arc<Signals>)> {
        let signals = self.status.signals();
        let (reports, handle) = (Arc::clone(&signals), driver.push_handler(&signals));
        let on_push = move |push: PushInfo| match push.kind {
            PushKind::Disconnection => reports.lost.notify_one(),
            _ => {
                reports.received.store(true, Ordering::Relaxed);
                handle(push);
            }
        };
        let opening = open(self.target.clone(), &self.context, D::RESPONSE_MAX, on_push);
        // `open` asks for the current master. Only a move after that question ends the attempt.
        self.target.mark_seen();
        let attempt = async {
            tokio::select! {
                result = opening => (false, result),
                address = self.target.moved() => {
                    let why = "it became the master during the attempt".to_owned();
                    (true, Err((ConnectError::Refused { address, why }, BrokerError::Unavailable)))
                }
            }
        };
        let (moved, result) = idle_until(driver, attempt).await;
        let connection = match result {
            Ok(connection) => {
                self.lines.is_unreachable = false;
                self.status.set_connected(connection.server.clone());
                self.input(Input::Connected);
                Some(connection)
            }
            Err(failed) => {
                self.log(&failed.0);
                self.input(Input::Refused);
                self.status.set_failed(failed);
                None
            }
        };
        if moved {
            self.input(Input::Moved);
        }
        connection.map(|connection| (connection, signals))
    }

    /// Watches over a connection while `work` uses it. Returns when the connection is to be dropped.
    async fn supervise(&mut self, connection: OpenConnection, signals: &Signals, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        let mut probe: Option<BoxFuture<'static, Input>> = None;
        loop {
            let until = match self.step() {
                ConnectionAction::Wait(until) => until,
                ConnectionAction::Probe => {
                    probe = Some(Box::pin(connection.clone().probe()));
                    continue;
                }
                ConnectionAction::Drop | ConnectionAction::Connect => return,
            };
            let input = tokio::select! {
                biased;
                input = signals.next() => input,
                Some(input) = OptionFuture::from(probe.as_mut()) => input,
                master = self.target.moved() => {
                    if master == connection.server.address.addr().to_string() {
                        continue;
                    }
                    Input::Moved
                }
                () = &mut work => Input::Lost,
                // The deadline of this step. If a probe is under way, its reply may stand behind a flood of messages,
                // or may have arrived while this process had no processor: neither is a silent connection.
                () = sleep_until(until.into()) => match &mut probe {
                    None => continue,
                    Some(_) if signals.received.swap(false, Ordering::Relaxed) => Input::Answered,
                    Some(probe) => match timeout(GRACE, probe).await {
                        Ok(input) => input,
                        Err(_) => continue,
                    },
                },
            };
            if input == Input::Answered {
                probe = None;
            }
            self.input(input);
        }
    }

    fn step(&mut self) -> ConnectionAction {
        let step = self.supervisor.step(Instant::now(), self.spread());
        self.show();
        step
    }

    fn input(&mut self, input: Input) {
        self.supervisor.on(input, Instant::now(), self.spread());
        self.show();
    }

    fn spread(&self) -> ReconnectSpread {
        let jitter = crate::cursor::random_u64() as f64 / u64::MAX as f64;
        ReconnectSpread { nodes: self.status.events.nodes.load(Ordering::Relaxed).max(1), jitter }
    }

    /// Shows a change of state to the other tasks, and to the log.
    fn show(&mut self) {
        let (was, now) = (self.shown, self.supervisor.state());
        if was == now {
            return;
        }
        self.shown = now;
        let status = self.status;
        status.set_state(now);
        let connection = &status.name;
        // An attempt that failed has a line of its own.
        let is_due = was != ConnectionState::Connecting && self.lines.is_due(now, Instant::now());
        match now {
            ConnectionState::Up if is_due => {
                tracing::info!(%connection, reconnects = status.reconnects(), "Redis connection up");
            }
            ConnectionState::Suspect if is_due => {
                tracing::warn!(%connection, "Redis connection suspect: Redis replies late");
            }
            ConnectionState::Down if is_due => tracing::warn!(%connection, "Redis connection down"),
            _ => tracing::debug!(%connection, state = ?now, "Redis connection"),
        }
    }

    fn log(&mut self, error: &ConnectError) {
        let connection = &self.status.name;
        if self.lines.is_unreachable_due(Instant::now()) {
            tracing::warn!(%connection, %error, "Redis cannot be reached; trying again");
        } else {
            tracing::debug!(%connection, %error, "Redis cannot be reached");
        }
    }
}

/// Lets the driver idle until `done` is ready.
async fn idle_until<T>(driver: &mut impl Driver, done: impl Future<Output = T>) -> T {
    let idle = async {
        driver.idle().await;
        pending().await
    };
    tokio::select! {
        biased;
        done = done => done,
        never = idle => never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that came up and went down again had 24 lines a second.
    #[test]
    fn a_connection_that_comes_and_goes_has_one_pair_of_lines_a_second() {
        let (began, mut lines) = (Instant::now(), ConnectionLines::new());
        let mut written = |state, ms| lines.is_due(state, began + Duration::from_millis(ms));
        let times = (0..3000).step_by(50);
        let count = times.map(|ms| [written(ConnectionState::Up, ms), written(ConnectionState::Down, ms)]);
        let [up, down] = count.fold([0, 0], |[ups, downs], [up, down]| [ups + u8::from(up), downs + u8::from(down)]);
        assert_eq!((up, down), (4, 3), "and one more when it comes up for the first time");
        let mut unreachable = |ms| lines.is_unreachable_due(began + Duration::from_millis(ms));
        assert!(!unreachable(3000), "the first failure is reported by the status");
        lines.is_unreachable = false;
        let mut unreachable = |ms| lines.is_unreachable_due(began + Duration::from_millis(ms));
        assert!(unreachable(3000) && !unreachable(9000), "once, and the last line is true");
        assert!(lines.is_due(ConnectionState::Up, began + Duration::from_secs(9)));
    }
}
