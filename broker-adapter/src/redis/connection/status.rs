//! What a connection's task shows to other tasks (`ConnectionStatus`), and what its driver reports to it (`Signals`).

use crate::{
    BrokerError,
    redis::{
        ConnectError, Fence, TopologyEvents, connection::supervisor::ConnectionState, connection::supervisor::Input,
    },
};
use parking_lot::Mutex;
use redis::ConnectionInfo;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::{Notify, watch};

/// The state of one connection, for other tasks.
#[derive(Debug)]
pub(crate) struct ConnectionStatus {
    /// What the log calls it.
    pub(crate) name: String,
    up: AtomicBool,
    /// What a caller gets while the connection is not up.
    away: Mutex<BrokerError>,
    /// Counts the connections that were made.
    connected: AtomicU64,
    /// The server of the last connection. Changes with each connection that is made.
    pub(crate) last: watch::Sender<Option<Server>>,
    /// The first result: the connection came up, or an attempt failed before.
    first: watch::Sender<Option<Result<(), ConnectError>>>,
    pub(crate) events: Arc<TopologyEvents>,
}

/// The server that a connection led to, and the fence of that server's memory.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: ConnectionInfo,
    pub(crate) fence: Fence,
}

/// Why an attempt to connect has failed, and what callers get meanwhile.
pub(crate) type FailedAttempt = (ConnectError, BrokerError);

impl ConnectionStatus {
    pub(crate) fn new(name: String, events: Arc<TopologyEvents>) -> Self {
        let (first, last) = (watch::Sender::new(None), watch::Sender::new(None));
        let away = Mutex::new(BrokerError::Unavailable);
        Self { name, up: AtomicBool::new(false), away, connected: AtomicU64::new(0), last, first, events }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// What a caller gets while the connection is not up: that Redis is away, or how it refused the last attempt.
    pub(crate) fn away(&self) -> BrokerError {
        self.away.lock().clone()
    }

    /// Connections made after the first one.
    pub(crate) fn reconnects(&self) -> u64 {
        self.connected.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// The fence of the last connection.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.last.borrow().as_ref().map(|server| server.fence.clone())
    }

    /// Waits until the connection has come up for the first time, or an attempt has failed before.
    pub(crate) async fn first(&self) -> Result<(), ConnectError> {
        // The sender lives as long as `self`.
        let first = self.first.subscribe().wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
        first.unwrap_or(Ok(()))
    }

    /// An attempt has failed. Once a connection was made, another attempt may still bring it up.
    pub(crate) fn set_failed(&self, (error, meanwhile): FailedAttempt) {
        *self.away.lock() = meanwhile;
        if self.connected.load(Ordering::Relaxed) == 0 {
            self.set_first(Err(error));
        }
    }

    /// Reports the first result. Returns `false`, and changes nothing, if there was one before.
    pub(crate) fn set_first(&self, result: Result<(), ConnectError>) -> bool {
        self.first.send_if_modified(|first| first.is_none() && first.replace(result).is_none())
    }

    /// A connection has been made.
    pub(crate) fn set_connected(&self, server: Server) {
        *self.away.lock() = BrokerError::Unavailable;
        self.connected.fetch_add(1, Ordering::Relaxed);
        self.last.send_replace(Some(server));
    }

    pub(crate) fn set_state(&self, state: ConnectionState) {
        let up = state == ConnectionState::Up;
        if self.up.swap(up, Ordering::AcqRel) != up && up {
            self.set_first(Ok(()));
            self.events.reconnected.notify_one();
        }
    }

    /// Signals for one attempt to connect and for its connection.
    pub(crate) fn signals(&self) -> Arc<Signals> {
        Arc::new(Signals { events: Arc::clone(&self.events), ..Signals::default() })
    }
}

/// What the driver of a connection, and the connection itself, report to the task that keeps it.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// The driver has restored everything that the connection is for.
    pub(crate) synced: Notify,
    /// A command was not answered in its time.
    pub(crate) late: Notify,
    /// The connection cannot be used any more.
    pub(crate) lost: Notify,
    /// Something was received since the last look.
    pub(crate) received: AtomicBool,
    pub(crate) events: Arc<TopologyEvents>,
}

impl Signals {
    /// Waits for the next report.
    pub(crate) async fn next(&self) -> Input {
        tokio::select! {
            biased;
            () = self.lost.notified() => Input::Lost,
            () = self.synced.notified() => Input::Synced,
            () = self.late.notified() => Input::Late,
        }
    }
}
