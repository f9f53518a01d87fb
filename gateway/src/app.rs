//! Assembles the gateway; called by `main`. The only file that knows every module. Everything is built and bound before
//! anything runs; then the shards serve until the drain is over.

use crate::{
    admin::{self, Operated},
    api,
    config::Config,
    essential::{end_process, essential},
    log,
    node::{Node, buffer::Buffer, drain::Drain, inbox::Inbox, leases::Leases, metrics::Metrics},
    policy::{origin::OriginPolicy, peer::PeerPolicy},
    protocol::native,
    session::OutboxLimits,
    shard::Shard,
    signals::{DrainCause, ProcessSignals},
    transport::{self, AcceptedSocket, HttpServer, ShardHandle, WAITING_MAX},
};
use axum::Router;
use fanfare_broker::{Broker, MemoryBroker, Subscriber, SubscriberId, redis::RedisBroker};
use md5::{Digest as _, Md5};
use std::{
    convert::Infallible,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    rc::Rc,
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Duration,
};
use tokio::{
    runtime::LocalOptions,
    sync::mpsc,
    time::{Instant, interval, sleep, sleep_until, timeout, timeout_at},
};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// Between two attempts to reach Redis at the start, and between two log lines about it.
const REDIS_RETRY: Duration = Duration::from_millis(250);
const REDIS_LOG: Duration = Duration::from_secs(5);
/// How long the broker may take to write the leaves of this node's sessions and to disconnect.
const BROKER_CLOSE: Duration = Duration::from_secs(2);
/// How long a draining node goes on listening at least, if it is behind a proxy: nginx looks the nodes' addresses up every
/// 2 s, Prometheus scrapes every 2 s, and a second is to spare.
const PROXY_NOTICES: Duration = Duration::from_secs(3);
/// Parts of the drain window: after the first a node stops listening at the latest, since `shard::drain` has closed the
/// sessions by then; after the second it no longer waits for connections, so that the broker's close has some time left.
const LISTENS: f64 = 0.85;
const CONNECTIONS_END: f64 = 0.95;
/// How often a draining shard looks whether its last connection has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Why the process cannot start; each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot listen on {address}: {why}")]
    Listen { address: SocketAddr, why: io::Error },
    #[error("cannot use Redis at {url}: {why}")]
    Redis { url: String, why: String },
    #[error("cannot write {path}: {why}")]
    ReadyFile { path: String, why: io::Error },
    #[error("the operating system refuses a thread, a signal or a runtime: {0}")]
    System(#[from] io::Error),
}

/// Runs the gateway until it has drained. After an error it has served no client.
pub(crate) async fn run(config: Config) -> Result<(), StartError> {
    let mut signals = ProcessSignals::new()?;
    let log_lines_dropped = log::start(&config)?;
    // Shells and init systems set a low soft limit for the sake of programs that use select(2).
    if let Err(why) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%why, "the limit of file descriptors stays as it is");
    }
    let public = bind(config.listen)?;
    let admin = bind(config.admin)?;
    let addresses = (public.local_addr()?, admin.local_addr()?);
    let demo = config.demo.then(|| demo_url(addresses.0));
    tracing::info!(listen = %addresses.0, admin = %addresses.1, node = %config.node, shards = config.shards, demo, "fanfare");
    let metrics = Metrics::new(&config.node);
    metrics.register(log_lines_dropped);
    let inboxes: Vec<Arc<Inbox>> = (0..config.shards).map(|_| Arc::new(Inbox::new(Arc::clone(&metrics)))).collect();
    let drain = Arc::new(Drain::new(Arc::clone(&metrics)));
    let operated = Arc::new(Operated {
        metrics: Arc::clone(&metrics),
        drain: Arc::clone(&drain),
        broker: OnceLock::new(),
        ready_needs_backplane: config.ready_needs_backplane,
    });
    admin::spawn(Arc::clone(&operated), admin)?;
    let broker = tokio::select! {
        broker = broker(&config, &inboxes) => broker?,
        _ = drain_asked(&mut signals, &drain) => {
            tracing::info!("stopped before Redis could be reached");
            return Ok(());
        }
    };
    let _ = operated.broker.set(Arc::clone(&broker)); // empty until now
    let node = Arc::new(node(&config, broker, addresses.0, drain, inboxes.clone()));
    let (emptied, all_emptied) = mpsc::channel(1);
    let (done, all_done) = mpsc::channel(1);
    let shards = spawn_shards(&node, inboxes, config.demo, (emptied, done))?;
    if let Some(path) = &config.ready_file {
        let body = format!("{{\"listen\":\"{}\",\"admin\":\"{}\"}}\n", addresses.0, addresses.1);
        std::fs::write(path, body).map_err(|why| StartError::ReadyFile { path: path.display().to_string(), why })?;
    }
    let listener = tokio::net::TcpListener::from_std(public)?;
    let leasing = Arc::clone(&node);
    tokio::spawn(essential("presence leases", async move { leasing.leases.expire().await }));
    let (metrics, per_second) = (Arc::clone(&node.metrics), node.limits.accepts_per_second);
    let end = end_of_listening(Arc::clone(&node), all_emptied);
    tokio::spawn(essential("acceptor", transport::accept(listener, shards, metrics, per_second, end)));
    node.drain.start();
    until_drained(&node, &mut signals, all_done).await;
    Ok(())
}

/// Where a browser on this machine finds the demo pages.
fn demo_url(listen: SocketAddr) -> String {
    match listen.ip().is_unspecified() {
        true => format!("http://localhost:{}/demo/", listen.port()),
        false => format!("http://{listen}/demo/"),
    }
}

/// Waits for a signal or `POST /drain`.
async fn drain_asked(signals: &mut ProcessSignals, drain: &Drain) -> DrainCause {
    tokio::select! {
        cause = signals.drain() => cause,
        () = drain.begun() => DrainCause::Request,
    }
}

/// Waits until a drain is asked for, then until the shards are done (each then drops its sender). The second SIGTERM or
/// SIGINT ends the wait at once.
async fn until_drained(node: &Node, signals: &mut ProcessSignals, mut all_done: mpsc::Receiver<Infallible>) {
    let cause = drain_asked(signals, &node.drain).await;
    node.drain.begin();
    tracing::info!("draining");
    let second_termination = async {
        if cause == DrainCause::Request {
            signals.termination().await;
            tracing::info!("the drain goes on: a second SIGTERM or SIGINT would end it");
        }
        signals.termination().await;
    };
    tokio::select! {
        () = second_termination => tracing::warn!("a second signal: not waiting for clients"),
        _ = all_done.recv() => {}
    }
    // The broker writes the leaves and takes this node off the others' list, so that they need not find out by time-out.
    if timeout(BROKER_CLOSE, node.broker.close()).await.is_err() {
        tracing::warn!("the backplane did not confirm that this node has left");
    }
    node.drain.finish();
    tracing::info!("drained");
}

/// Returns when a draining node is to stop listening: all shards have closed their sessions (each of them then drops its
/// sender of `emptied`), and the proxy has had time to notice. Until then API requests are served as usual.
///
/// After that new connections are refused, which is safe: a proxy sends the request to another node, since none of it was
/// sent here. A request that was sent must not be lost that way, so connections that exist are served to their end.
async fn end_of_listening(node: Arc<Node>, mut emptied: mpsc::Receiver<Infallible>) {
    node.drain.begun().await;
    let began = Instant::now();
    // A node without a proxy stops listening at once, so that Ctrl-C on a developer's terminal does not take 3 s.
    let noticed = if node.drain.is_behind_proxy() { began + PROXY_NOTICES } else { began };
    let listened = async {
        let _: Option<Infallible> = emptied.recv().await;
        sleep_until(noticed).await;
    };
    let _ = timeout_at(began + node.drain_window.mul_f64(LISTENS), listened).await;
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listen = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(|why| StartError::Listen { address, why })
}

async fn broker(config: &Config, inboxes: &[Arc<Inbox>]) -> Result<Arc<dyn Broker>, StartError> {
    let subscribers: Vec<Arc<dyn Subscriber>> =
        inboxes.iter().map(|inbox| Arc::clone(inbox) as Arc<dyn Subscriber>).collect();
    if config.redis.is_empty() {
        return Ok(Arc::new(MemoryBroker::new(subscribers)));
    }
    let url = config.redis.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let failed = |why: String| StartError::Redis { url: url.clone(), why };
    let mut settings =
        fanfare_broker::redis::RedisConfig::parse(&config.redis_urls()).map_err(|why| failed(why.to_string()))?;
    settings.prefix.clone_from(&config.redis_prefix);
    settings.on_panic = |task| end_process(task);
    settings.is_payload = native::is_payload;
    if let Some(file) = &config.redis_ca_file {
        let authorities = std::fs::read(file).map_err(|why| failed(format!("{}: {why}", file.display())))?;
        settings.trust(&authorities).map_err(|why| failed(format!("{}: {why}", file.display())))?;
    }
    let deadline = Instant::now() + config.redis_wait;
    let mut next_line = Instant::now();
    loop {
        match RedisBroker::connect(settings.clone(), subscribers.clone()).await {
            Ok(broker) => return Ok(broker),
            Err(why) if Instant::now() >= deadline => return Err(failed(why.to_string())),
            Err(why) if Instant::now() >= next_line => {
                let seconds_left = (deadline - Instant::now()).as_secs();
                tracing::warn!(%why, %url, seconds_left, "waiting for Redis");
                next_line = Instant::now() + REDIS_LOG;
            }
            Err(_) => {}
        }
        sleep(REDIS_RETRY).await;
    }
}

pub(crate) fn node(
    config: &Config,
    broker: Arc<dyn Broker>,
    listen: SocketAddr,
    drain: Arc<Drain>,
    inboxes: Vec<Arc<Inbox>>,
) -> Node {
    let (limits, metrics) = (config.limits, Arc::clone(&drain.metrics));
    let total = if limits.outbox_total_bytes == 0 { usize::MAX } else { limits.outbox_total_bytes };
    Node {
        id: broker.status().node,
        name: config.node.clone(),
        route: route(config.advertise.unwrap_or_else(|| reachable(listen))),
        leases: Leases::new(Arc::clone(&broker), config.classes.clone()),
        broker,
        classes: config.classes.clone(),
        limits,
        outbox_limits: OutboxLimits {
            bytes: limits.outbox_bytes,
            frames: limits.outbox_messages,
            age_ms: u32::try_from(limits.outbox_age.as_millis()).unwrap_or(u32::MAX),
        },
        shard_outbox_bytes: (total / config.shards).max(limits.outbox_bytes),
        origins: OriginPolicy::new(config.origins.clone()),
        peers: PeerPolicy::new(config.trusted_proxies.clone(), limits.connections_per_ip),
        drain,
        buffer: Buffer::new(Arc::clone(&metrics)),
        metrics,
        drain_window: config.drain,
        inboxes,
    }
}

/// The route that nginx's `sticky` computes for a server: the lower-case hex MD5 of its address and port.
fn route(address: SocketAddr) -> String {
    let digest = Md5::digest(address.to_string());
    digest.iter().fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"))
}

/// The address under which others reach a listener: its own, or the host's if it listens on all addresses. Connecting a
/// UDP socket sends nothing: the kernel only chooses the address to send from (192.0.2.0/24 is reserved for examples).
fn reachable(listen: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let own = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    SocketAddr::new(own().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), listen.port())
}

// --- shards ---

fn spawn_shards(
    node: &Arc<Node>,
    inboxes: Vec<Arc<Inbox>>,
    with_demo: bool,
    (emptied, done): (mpsc::Sender<Infallible>, mpsc::Sender<Infallible>),
) -> io::Result<Vec<ShardHandle>> {
    let router = api::router(Arc::clone(node), with_demo);
    let spawn = |(i, inbox): (usize, Arc<Inbox>)| {
        let load = Arc::new(AtomicUsize::new(0));
        let (arrivals, arriving) = mpsc::channel(WAITING_MAX);
        let (shard_node, shard_load, router) = (Arc::clone(node), Arc::clone(&load), router.clone());
        let (emptied, done) = (emptied.clone(), done.clone());
        std::thread::Builder::new().name(format!("shard-{i}")).spawn(move || {
            // A local runtime: its tasks stay on this thread, so that a shard's state needs no lock.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(essential("shard", async {
                    let shard = Shard::new(shard_node, SubscriberId(i as u16), inbox, shard_load);
                    run_shard(shard, router, arriving, emptied, done).await;
                })),
                Err(why) => end_process(&format!("shard (no runtime: {why})")),
            }
        })?;
        Ok(ShardHandle { arrivals, load })
    };
    inboxes.into_iter().enumerate().map(spawn).collect()
}

/// One shard's thread: serves the sockets that arrive. When the node drains it closes its sessions, drops `emptied`, and
/// goes on with requests until the node no longer listens and the last connection has ended. Then it drops `done`, and
/// does nothing but answer control messages: without it posts for its sessions would wait in vain.
async fn run_shard(
    shard: Rc<Shard>,
    router: Router,
    mut arriving: mpsc::Receiver<AcceptedSocket>,
    emptied: mpsc::Sender<Infallible>,
    done: mpsc::Sender<Infallible>,
) {
    tokio::task::spawn_local(essential("shard loop", Rc::clone(&shard).run()));
    tokio::task::spawn_local(essential("shard timers", Rc::clone(&shard).run_timers()));
    tokio::task::spawn_local(essential("shard state watch", Rc::clone(&shard).watch_surroundings()));
    let server = HttpServer::new(Rc::clone(&shard), router);
    // Ends when the acceptor ends, which drops its side of the channel.
    let serve_arrivals = async {
        while let Some((socket, peer)) = arriving.recv().await {
            match tokio::net::TcpStream::from_std(socket) {
                Ok(socket) => drop(tokio::task::spawn_local(Rc::clone(&server).serve(socket, peer))),
                Err(why) => tracing::warn!(%why, "a socket could not be taken over"),
            }
        }
    };
    let close_sessions = async {
        shard.node.drain.begun().await;
        Rc::clone(&shard).drain(shard.node.drain_window).await;
        drop(emptied);
    };
    let drained = async {
        tokio::join!(serve_arrivals, close_sessions);
        // While the node drains, connections end with their next response, or after some seconds without a request.
        let mut looks = interval(LOOK);
        while shard.node.drain.is_behind_proxy() && !server.is_idle() {
            looks.tick().await;
        }
    };
    let window_ends = async {
        shard.node.drain.begun().await;
        sleep(shard.node.drain_window.mul_f64(CONNECTIONS_END)).await;
    };
    tokio::select! {
        () = drained => {}
        () = window_ends => {}
    }
    drop((arriving, done));
    pending::<()>().await;
}
