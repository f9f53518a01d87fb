//! The proxy: it accepts connections and connects each to its server. The fault can be changed while connections are
//! open. Called by the fault tests and the fault runs. It never looks at the bytes, and it never drops any without ending
//! the connection, because TCP does not either.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::kind::Fault;
use super::pump;

/// A running proxy; dropping it resets its connections.
#[derive(Debug)]
pub struct Proxy {
    /// The address to which clients connect.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What the proxy shares with its connections.
#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Counts the calls of `Proxy::reset`.
    resets: watch::Sender<u64>,
    /// The local addresses of the connections to the server.
    outgoing: Mutex<Vec<SocketAddr>>,
    accepted: AtomicU64,
    open: AtomicUsize,
}

impl Proxy {
    /// Starts a proxy before a server, on a free port.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            server,
            fault: watch::Sender::new(Fault::Healthy),
            resets: watch::Sender::new(0),
            outgoing: Mutex::default(),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    /// Sets the fault, also for connections that are open.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// Ends the fault; the bytes that were held back pass.
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

    /// The addresses from which the server sees the open connections come.
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
    fn outgoing(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Accepting fails only without file descriptors; the test then fails with a message of its own.
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(connection(near, Arc::clone(&shared)));
    }
}

/// One connection from its accept to its end.
async fn connection(near: TcpStream, shared: Arc<Shared>) {
    let resets = shared.resets.subscribe();
    let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
    // During a stall the client's connect succeeds and nothing follows, as with a server that hangs.
    let may_connect = |fault: &Fault| *fault != Fault::Stall;
    let mut fault = shared.fault.subscribe();
    if fault.wait_for(may_connect).await.is_ok_and(|fault| *fault == Fault::Reset) {
        let _ = near.set_zero_linger();
        return;
    }
    let Ok(far) = TcpStream::connect(shared.server).await else {
        let _ = near.set_zero_linger();
        return;
    };
    let (Ok(local), Ok(()), Ok(())) = (far.local_addr(), near.set_nodelay(true), far.set_nodelay(true)) else { return };
    shared.open.fetch_add(1, Ordering::Relaxed);
    shared.outgoing().push(local);
    pump::both_directions((near, far), &shared.fault, resets, number).await;
    shared.outgoing().retain(|other| *other != local);
    shared.open.fetch_sub(1, Ordering::Relaxed);
}
