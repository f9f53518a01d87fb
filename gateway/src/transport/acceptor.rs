//! Takes connections from the public listener and hands each to the shard with the fewest sessions. Runs on the main
//! thread, so that no shard's work delays it, and be it the end of all its sessions at once; it never waits for a client.
//! What it may not or cannot take yet waits in the kernel's backlog.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, error::TrySendError},
};

use crate::{node::metrics::Metrics, session::TokenBucket};

/// Sockets that may wait for a shard to take them over.
pub(crate) const WAITING_MAX: usize = 1024;
/// Pause after a failed accept: with no file descriptor left the next attempt fails too, and would spin.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether a shard has room again.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// The kernel calls a socket writable only below so many unsent bytes: the backlog waits in the outbox, where the policy
/// is, and not in the kernel.
const NOTSENT_BYTES: u32 = 32 << 10;
/// Unacknowledged for so long, a connection is dead: sooner than the peer's silence would tell.
const UNACKED: Duration = Duration::from_secs(30);

/// A socket on its way to its shard, free of the runtime that accepted it.
pub(crate) type Arrival = (std::net::TcpStream, IpAddr);

/// One shard, as the acceptor sees it.
pub(crate) struct ShardHandle {
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) load: Arc<AtomicUsize>,
}

/// Accepts for ever, `per_second` connections on average and twice as many in a burst; 0: no limit.
pub(crate) async fn accept(listener: TcpListener, doors: Vec<ShardHandle>, metrics: Arc<Metrics>, per_second: u32) {
    let mut handed = 0;
    let started = Instant::now();
    let mut bucket = TokenBucket::full(per_second, 0);
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
        let mut delayed = false;
        while let Err(ms) = bucket.take(per_second, started.elapsed().as_millis() as u32) {
            delayed = true;
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let mut arrival = (socket, address.ip());
        loop {
            match hand_over(arrival, &doors, handed) {
                HandOver::Taken(turn) => {
                    handed = turn;
                    break;
                }
                HandOver::Gone => break,
                HandOver::Full(back) => arrival = back,
            }
            delayed = true;
            tokio::time::sleep(FULL_PAUSE).await;
        }
        if delayed {
            metrics.accepts_delayed.inc();
        }
    }
}

/// What became of a socket that was to be handed over.
#[derive(Debug)]
enum HandOver {
    /// It is the shard's; the turn goes on from here.
    Taken(usize),
    /// No shard has room for it now.
    Full(Arrival),
    /// No shard takes any: the node has drained.
    Gone,
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

/// Gives the socket to the least loaded shard that has room. `turn` parts shards of equal load, as they are in a storm,
/// before their counts have caught up.
fn hand_over(arrival: Arrival, doors: &[ShardHandle], turn: usize) -> HandOver {
    let mut order: Vec<usize> = (0..doors.len()).map(|i| (i + turn) % doors.len()).collect();
    order.sort_by_key(|i| {
        let waiting = WAITING_MAX - doors[*i].arrivals.capacity();
        doors[*i].load.load(Ordering::Relaxed) + waiting
    });
    let (mut arrival, mut full) = (arrival, false);
    for i in order {
        match doors[i].arrivals.try_send(arrival) {
            Ok(()) => return HandOver::Taken(i + 1),
            Err(TrySendError::Full(back)) => (arrival, full) = (back, true),
            Err(TrySendError::Closed(back)) => arrival = back,
        }
    }
    if full { HandOver::Full(arrival) } else { HandOver::Gone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(count: usize, room: usize) -> (Vec<ShardHandle>, Vec<mpsc::Receiver<Arrival>>) {
        let door = |_| {
            let (arrivals, arriving) = mpsc::channel(room);
            (ShardHandle { arrivals, load: Arc::default() }, arriving)
        };
        (0..count).map(door).unzip()
    }

    /// A storm of connects that overtakes the shards is not turned away: it waits.
    #[tokio::test]
    async fn a_connection_that_no_shard_has_room_for_waits_and_is_not_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (doors, mut arriving) = doors(2, 1);
        let metrics = Metrics::new("a");
        let acceptor = tokio::spawn(accept(listener, doors, Arc::clone(&metrics), 0));
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut taken = Vec::new();
        for i in 0..8 {
            let one = tokio::time::timeout(Duration::from_secs(10), arriving[i % 2].recv()).await;
            taken.push(one.expect("nobody is turned away").unwrap());
        }
        assert!(metrics.accepts_delayed.get() > 0);
        drop(arriving);
        acceptor.abort();
    }

    #[tokio::test]
    async fn connections_beyond_the_rate_wait_in_the_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (doors, mut arriving) = doors(1, 100);
        let metrics = Metrics::new("a");
        let acceptor = tokio::spawn(accept(listener, doors, Arc::clone(&metrics), 20));
        let began = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..50 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..50 {
            let one = tokio::time::timeout(Duration::from_secs(20), arriving[0].recv()).await;
            one.expect("everybody is taken").unwrap();
        }
        // 40 at once, the other ten at 20 a second.
        assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
        // Not all ten of a slow machine's: there the rate has caught up meanwhile.
        assert!(metrics.accepts_delayed.get() > 0);
        acceptor.abort();
    }
}
