//! A TCP proxy that breaks connections on purpose: between clients and a gateway, or between a gateway and Redis. Its
//! fault can be changed while connections are open. Called by the fault tests and runs; it never looks into the bytes,
//! and it never loses one without ending the connection, since TCP does not either.

mod pump;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the one who connected sends.
    ToServer,
    /// What comes back.
    ToClient,
}

/// How the proxy treats connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Carries everything at once.
    Healthy,
    /// Carries everything later, in order.
    Delay {
        /// By so much at least.
        least: Duration,
        /// And by up to so much more, drawn for each piece.
        jitter: Duration,
    },
    /// Carries nothing either way; connections stay open, and go on where they were when this ends.
    Stall,
    /// Carries nothing this direction, not even the end of the connection; the other direction works.
    BlackHole(Direction),
    /// Carries so many bytes of each connection, both ways counted together from now on, then resets it.
    CutAfter(u64),
    /// Writes every byte by itself.
    Chop,
    /// Resets all connections, and every new one.
    Reset,
}

/// A running proxy; its connections are reset when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What the connections know.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Counts the calls of `Proxy::reset`.
    resets: watch::Sender<u64>,
    /// The local addresses of the connections to the target.
    outgoing: Mutex<Vec<SocketAddr>>,
    accepted: AtomicU64,
    open: AtomicUsize,
}

impl Proxy {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            target,
            fault: watch::Sender::new(Fault::Healthy),
            resets: watch::Sender::new(0),
            outgoing: Mutex::default(),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    /// Changes how connections are treated, those that are open too.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// Ends the fault: what was held back goes on.
    pub fn heal(&self) {
        self.set(Fault::Healthy);
    }

    /// Resets the connections that are open now, and no later one.
    pub fn reset(&self) {
        self.shared.resets.send_modify(|resets| *resets += 1);
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The addresses under which the target sees the open connections.
    #[must_use]
    pub fn outgoing(&self) -> Vec<SocketAddr> {
        self.shared.outgoing().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Fault::Reset);
    }
}

impl Shared {
    fn outgoing(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Fails only without descriptors; then the test has worse troubles, and its own message.
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(connection(near, Arc::clone(&shared)));
    }
}

/// One connection, from its accept to its end.
async fn connection(near: TcpStream, shared: Arc<Shared>) {
    let resets = shared.resets.subscribe();
    let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
    // Like a peer that is gone: the connect succeeds here, and nothing more.
    let may_connect = |fault: &Fault| *fault != Fault::Stall;
    let mut fault = shared.fault.subscribe();
    if fault.wait_for(may_connect).await.is_ok_and(|fault| *fault == Fault::Reset) {
        let _ = near.set_zero_linger();
        return;
    }
    let Ok(far) = TcpStream::connect(shared.target).await else {
        let _ = near.set_zero_linger();
        return;
    };
    let (Ok(local), Ok(()), Ok(())) = (far.local_addr(), near.set_nodelay(true), far.set_nodelay(true)) else { return };
    shared.open.fetch_add(1, Ordering::Relaxed);
    shared.outgoing().push(local);
    pump::both_ways((near, far), &shared.fault, resets, number).await;
    shared.outgoing().retain(|other| *other != local);
    shared.open.fetch_sub(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
