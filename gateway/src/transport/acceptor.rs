//! Takes connections from the public listener and gives each to the shard with the fewest sessions. Called by `app`, on
//! the main thread, so that a busy shard cannot delay it. It waits for no client. Connections that no shard can take yet
//! wait in the kernel's backlog.

use crate::{node::metrics::Metrics, session::TokenBucket};
use rlimit::Resource;
use socket2::{SockFilter, SockRef};
use std::{
    io,
    net::{IpAddr, TcpStream},
    os::fd::AsRawFd as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, error::TrySendError},
};

/// Sockets that may wait for one shard.
pub(crate) const WAITING_MAX: usize = 1024;
/// Pause after a failed accept. Without a free file descriptor the next attempt fails too, and without a pause they would
/// use up a core.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two lines of the log about that.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// File descriptors that clients may not take, as long as the limit is not very low: the operator's port, the connections
/// to Redis and their reconnects need them.
const RESERVED_FDS: u64 = 64;
/// Pause while no shard has room.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// A socket counts as writable only while the kernel has fewer unsent bytes than this. So what a slow client has not read
/// waits in its outbox, where it is counted and limited, and not in the kernel.
const NOTSENT_BYTES: u32 = 32 << 10;
/// A connection whose bytes are not acknowledged for this long is dead. Without this the kernel would try for 15 minutes.
const UNACKED: Duration = Duration::from_secs(30);

/// A socket on its way to its shard, not registered with any runtime, and the address of its peer.
pub(crate) type AcceptedSocket = (TcpStream, IpAddr);

/// One shard, as the acceptor sees it.
pub(crate) struct ShardHandle {
    pub(crate) arrivals: mpsc::Sender<AcceptedSocket>,
    pub(crate) load: Arc<AtomicUsize>,
}

/// Time for handshakes in progress to end before the listener closes: a few round trips within a data centre.
const HANDSHAKES_END: Duration = Duration::from_millis(50);
/// A socket filter (classic BPF, as in Linux' `networking/filter.rst`) that drops segments with SYN, whose flag is bit 1 of
/// byte 13 of the TCP header (RFC 9293 section 3.1). On a listener it lets handshakes in progress end and no new one begin.
const NO_NEW_HANDSHAKES: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 13),       // load byte 13
    SockFilter::new(0x45, 0, 1, 0x02),     // is SYN set? else skip one
    SockFilter::new(0x06, 0, 0, 0),        // drop
    SockFilter::new(0x06, 0, 0, u32::MAX), // keep
];

/// Accepts `per_second` connections on average and twice as many in a burst (0: no limit) until `end`. Then it takes the
/// connections that the kernel has completed meanwhile, since their clients may have sent a request, and stops listening.
pub(crate) async fn accept(
    listener: TcpListener,
    shards: Vec<ShardHandle>,
    metrics: Arc<Metrics>,
    per_second: u32,
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    let mut turn = 0;
    let started = Instant::now();
    let mut bucket = TokenBucket::full(per_second, 0);
    let fds_max = clients_fds();
    let mut next_line = started;
    loop {
        // First of all the end: in a storm of connects there is always one to accept.
        let accepted = tokio::select! {
            biased;
            () = &mut end => break,
            accepted = listener.accept() => accepted,
        };
        // The kernel gives the lowest free number, so the number says how many are in use.
        let accepted = accepted.and_then(|(socket, address)| match socket.as_raw_fd() as u64 >= fds_max {
            true => Err(io::Error::other("the file descriptors that are left are reserved")),
            false => Ok((socket, address)),
        });
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(why) if is_aborted_by_client(&why) => continue,
            Err(why) => {
                metrics.accept_errors.inc();
                if Instant::now() >= next_line {
                    next_line = Instant::now() + LOG_EVERY;
                    tracing::warn!(%why, fds_max, "cannot accept connections");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(socket) = socket.into_std().and_then(prepare) else { continue };
        let mut delayed = false;
        while let Err(ms) = bucket.take(per_second, started.elapsed().as_millis() as u32) {
            delayed = true;
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        delayed |= deliver((socket, address.ip()), &shards, &mut turn).await;
        if delayed {
            metrics.accepts_delayed.inc();
        }
    }
    // A connection that the kernel completes between the last accept and the close is reset, and with it the request that
    // its client has sent. So no new handshake begins any more; a client whose SYN was dropped repeats it, and is refused.
    if let Err(why) = SockRef::from(&listener).attach_filter(&NO_NEW_HANDSHAKES) {
        tracing::debug!(%why, "the listener closes while handshakes may be in progress");
    }
    tokio::time::sleep(HANDSHAKES_END).await;
    // Asked directly: the runtime may not have heard of the latest connections yet.
    let Ok(listener) = listener.into_std() else { return };
    loop {
        match listener.accept() {
            Ok((socket, address)) => {
                if let Ok(socket) = socket.set_nonblocking(true).and_then(|()| prepare(socket)) {
                    deliver((socket, address.ip()), &shards, &mut turn).await;
                }
            }
            Err(why) if is_aborted_by_client(&why) => {}
            Err(_) => return, // none is left, or none can be accepted
        }
    }
}

/// The file descriptors that this process and its clients may use, without the reserve.
fn clients_fds() -> u64 {
    let limit = Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    limit - RESERVED_FDS.min(limit / 4)
}

/// Gives a socket to the least loaded shard, as soon as one has room; `true` if it had to wait for that. `turn` decides
/// between shards of equal load. In a storm of connects all loads are equal until the shards have counted their new
/// sessions.
async fn deliver(mut arrival: AcceptedSocket, shards: &[ShardHandle], turn: &mut usize) -> bool {
    let mut delayed = false;
    loop {
        let mut order: Vec<usize> = (0..shards.len()).map(|i| (i + *turn) % shards.len()).collect();
        order.sort_by_key(|i| {
            let waiting = WAITING_MAX - shards[*i].arrivals.capacity();
            shards[*i].load.load(Ordering::Relaxed) + waiting
        });
        let mut full = false;
        for i in order {
            match shards[i].arrivals.try_send(arrival) {
                Ok(()) => {
                    *turn = i + 1;
                    return delayed;
                }
                Err(TrySendError::Full(back)) => (arrival, full) = (back, true),
                Err(TrySendError::Closed(back)) => arrival = back,
            }
        }
        if !full {
            return delayed; // all shards have ended: the node has drained
        }
        delayed = true;
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

/// Whether an accept failed because the client was gone already.
fn is_aborted_by_client(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(why.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    options.set_tcp_notsent_lowat(NOTSENT_BYTES)?;
    options.set_tcp_user_timeout(Some(UNACKED))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::net::TcpStream;

    fn shards(count: usize, room: usize) -> (Vec<ShardHandle>, Vec<mpsc::Receiver<AcceptedSocket>>) {
        let shard = |_| {
            let (arrivals, arriving) = mpsc::channel(room);
            (ShardHandle { arrivals, load: Arc::default() }, arriving)
        };
        (0..count).map(shard).unzip()
    }

    /// Connections that come faster than the shards take them wait.
    #[tokio::test]
    async fn a_connection_that_no_shard_has_room_for_waits_and_is_not_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shards, mut arriving) = shards(2, 1);
        let metrics = Metrics::new("a");
        let acceptor = tokio::spawn(accept(listener, shards, Arc::clone(&metrics), 0, pending()));
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut taken = Vec::new();
        for i in 0..8 {
            let one = tokio::time::timeout(Duration::from_secs(10), arriving[i % 2].recv()).await;
            taken.push(one.expect("no connection is refused").unwrap());
        }
        assert!(metrics.accepts_delayed.get() > 0);
        drop(arriving);
        acceptor.abort();
    }

    #[tokio::test]
    async fn connections_beyond_the_rate_wait_in_the_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shards, mut arriving) = shards(1, 100);
        let metrics = Metrics::new("a");
        let acceptor = tokio::spawn(accept(listener, shards, Arc::clone(&metrics), 20, pending()));
        let began = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..50 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..50 {
            let one = tokio::time::timeout(Duration::from_secs(20), arriving[0].recv()).await;
            one.expect("every connection is taken").unwrap();
        }
        // 40 at once, the other ten at 20 a second.
        assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
        // On a slow machine fewer than ten are delayed: the rate catches up meanwhile.
        assert!(metrics.accepts_delayed.get() > 0);
        acceptor.abort();
    }

    #[tokio::test]
    async fn connections_that_are_complete_when_listening_ends_are_still_handed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shards, mut arriving) = shards(1, 100);
        // They are complete as soon as the kernel has them: nothing has been accepted yet.
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        accept(listener, shards, Metrics::new("a"), 0, ready(())).await;
        for _ in 0..8 {
            arriving[0].recv().await.expect("a connection is handed over");
        }
        assert!(arriving[0].recv().await.is_none());
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// A client connects again and again while listening ends: each of its connections is handed over.
    #[tokio::test]
    async fn no_established_connection_is_reset_when_listening_ends() {
        for _ in 0..5 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (shards, mut arriving) = shards(1, 10_000);
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let acceptor = tokio::spawn(accept(listener, shards, Metrics::new("a"), 0, async {
                let _ = ended.await;
            }));
            let count = Arc::new(AtomicUsize::new(0));
            let connected = Arc::clone(&count);
            let client = std::thread::spawn(move || {
                while std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok() {
                    connected.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Closed at once, so that the test needs few file descriptors.
            let mut taken = 0;
            while taken < 100 {
                drop(arriving[0].recv().await.unwrap());
                taken += 1;
            }
            end.send(()).unwrap();
            while arriving[0].recv().await.is_some() {
                taken += 1;
            }
            acceptor.await.unwrap();
            client.join().unwrap();
            assert_eq!(taken, count.load(Ordering::Relaxed));
        }
    }
}
