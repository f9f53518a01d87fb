//! The connections of operators' tools: a few at a time, none of them idle for long. Called by `admin`, on its thread. It
//! knows no path.

use crate::http::IDLE_TIME;
use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::ServiceExt as _;

/// Connections at a time. Balancers, a Prometheus and an operator have one each. With a limit of 150 file descriptors the
/// acceptor leaves 37 to the node (`transport::acceptor`), and the connections to one Redis are up to 21.
const CONNECTIONS_MAX: usize = 16;
/// Pause after a failed accept. Without a free file descriptor the next attempt fails too.
const PAUSE: Duration = Duration::from_millis(50);

struct AdminConnection {
    /// When it was opened, or began its last request.
    used: Rc<Cell<Instant>>,
    task: JoinHandle<()>,
}

/// Serves for as long as the process lives, in a `LocalSet`. When there are as many connections as may be, or no
/// descriptor is left for another one, the one that has been idle for the longest time gives way.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let mut connections: Vec<AdminConnection> = Vec::with_capacity(CONNECTIONS_MAX);
    loop {
        let accepted = listener.accept().await;
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() == CONNECTIONS_MAX || accepted.is_err() {
            close_longest_idle(&mut connections).await;
        }
        match accepted {
            Ok((socket, peer)) => connections.push(AdminConnection::open(socket, peer, router.clone())),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn close_longest_idle(connections: &mut Vec<AdminConnection>) {
    let longest = connections.iter().enumerate().min_by_key(|(_, connection)| connection.used.get());
    if let Some((index, _)) = longest {
        let task = connections.swap_remove(index).task;
        task.abort();
        let _ = task.await; // its descriptor is free after this
    }
}

impl AdminConnection {
    fn open(socket: TcpStream, peer: SocketAddr, router: Router) -> Self {
        let used = Rc::new(Cell::new(Instant::now()));
        let task = tokio::task::spawn_local(serve_requests(socket, peer, router, Rc::clone(&used)));
        Self { used, task }
    }
}

async fn serve_requests(socket: TcpStream, peer: SocketAddr, router: Router, used: Rc<Cell<Instant>>) {
    let service = service_fn(|mut request: Request<Incoming>| {
        used.set(Instant::now());
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    });
    // The time for a request's head; between two requests it is the time without one.
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_TIME);
    let _ = http.serve_connection(TokioIo::new(socket), service).await; // a tool that breaks off is no event
}
