//! Takes connections from the public listener and hands each to the shard with the fewest sessions. Runs on the main
//! thread, so that no shard's work delays it; it never waits for a client.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, error::TrySendError},
};

use crate::metrics::Metrics;

/// Sockets that may wait for a shard to take them over.
pub(crate) const WAITING_MAX: usize = 1024;
/// Pause after a failed accept: with no file descriptor left the next attempt fails too, and would spin.
const PAUSE: Duration = Duration::from_millis(50);
/// The kernel calls a socket writable only below so many unsent bytes: the backlog waits in the outbox, where the policy
/// is, and not in the kernel.
const NOTSENT_BYTES: u32 = 32 << 10;
/// Unacknowledged for so long, a connection is dead: sooner than the peer's silence would tell.
const UNACKED: Duration = Duration::from_secs(30);

/// A socket on its way to its shard, free of the runtime that accepted it.
pub(crate) type Arrival = (std::net::TcpStream, IpAddr);

/// One shard, as the acceptor sees it.
pub(crate) struct ShardDoor {
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) load: Arc<AtomicUsize>,
}

/// Accepts for ever.
pub(crate) async fn accept(listener: TcpListener, doors: Vec<ShardDoor>, metrics: Arc<Metrics>) {
    let mut handed = 0;
    loop {
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(why) if is_the_clients_own(&why) => continue,
            Err(why) => {
                metrics.accept_errors.inc();
                tracing::warn!(%why, "cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(socket) = prepare(socket) else { continue };
        handed = hand_over((socket, address.ip()), &doors, handed);
    }
}

/// The client was gone before it was accepted.
fn is_the_clients_own(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(why.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn prepare(socket: TcpStream) -> io::Result<std::net::TcpStream> {
    socket.set_nodelay(true)?;
    let options = socket2::SockRef::from(&socket);
    options.set_tcp_notsent_lowat(NOTSENT_BYTES)?;
    options.set_tcp_user_timeout(Some(UNACKED))?;
    socket.into_std()
}

/// Gives the socket to the least loaded shard that has room; with none the client is turned away by closing.
/// `turn` parts shards of equal load, as they are in a storm, before their counts have caught up.
fn hand_over(arrival: Arrival, doors: &[ShardDoor], turn: usize) -> usize {
    let mut order: Vec<usize> = (0..doors.len()).map(|i| (i + turn) % doors.len()).collect();
    order.sort_by_key(|i| {
        let waiting = WAITING_MAX - doors[*i].arrivals.capacity();
        doors[*i].load.load(Ordering::Relaxed) + waiting
    });
    let mut arrival = arrival;
    for i in order {
        match doors[i].arrivals.try_send(arrival) {
            Ok(()) => return i + 1,
            Err(TrySendError::Full(back) | TrySendError::Closed(back)) => arrival = back,
        }
    }
    turn
}
