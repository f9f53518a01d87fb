//! The operator's port: metrics, health, drain. It has its own thread and runtime, so that it answers while the shards are
//! saturated, and serves before the backplane has been reached. It reads counters and switches only.

mod listener;

use crate::{
    essential::essential,
    http::{Finish, check_host},
    node::{
        drain::{Drain, NodePhase},
        metrics::Metrics,
    },
};
use axum::{
    Router,
    extract::{ConnectInfo, RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, options, post},
};
use fanfare_broker::Broker;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, OnceLock},
};
use tokio::task::LocalSet;

/// What operators see and switch.
pub(crate) struct Operated {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
    /// Empty until the node has reached the backplane.
    pub(crate) broker: OnceLock<Arc<dyn Broker>>,
    /// Whether a lost backplane makes the node unready.
    pub(crate) ready_needs_backplane: bool,
}

/// Serves for as long as the process lives. The error: the operating system refuses a thread or a runtime.
pub(crate) fn spawn(operated: Arc<Operated>, listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        let serving = essential("admin listener", listener::serve(listener, router(operated)));
        LocalSet::new().block_on(&runtime, serving); // never returns
    })?;
    Ok(())
}

fn router(operated: Arc<Operated>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/drain", post(drain))
        // HAProxy's `option httpchk` without a path asks `OPTIONS /`.
        .route("/", options(ready))
        .layer(from_fn_with_state(Arc::clone(&operated), check))
        .with_state(operated)
}

/// Checks `Host`, and finishes every response. A balancer that asks for health, or a Prometheus, on another machine needs
/// time to notice that this node goes.
async fn check(
    State(operated): State<Arc<Operated>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let response = match check_host(request.version(), request.headers()) {
        Err(refusal) => refusal.into_response(),
        Ok(()) => {
            if !peer.ip().to_canonical().is_loopback() {
                operated.drain.note_proxy();
            }
            next.run(request).await
        }
    };
    Finish { origin: None, drain: Arc::clone(&operated.drain) }.response(response)
}

async fn metrics(State(operated): State<Arc<Operated>>) -> Response {
    let text = operated.metrics.text(operated.broker.get().map(|broker| broker.status()));
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

/// 200 while the node takes new clients. A lost backplane alone does not make the node unready, since all nodes would leave the
/// load balancer at once; `?backplane=1` or the option `ready_needs_backplane` changes that.
async fn ready(State(operated): State<Arc<Operated>>, RawQuery(query): RawQuery) -> Response {
    let up = operated.broker.get().is_some_and(|broker| broker.status().up);
    let backplane_asked = query.as_deref().unwrap_or_default().split('&').any(|pair| pair == "backplane=1");
    let phase = operated.drain.phase();
    let state = match phase {
        NodePhase::Starting => "starting",
        NodePhase::Ready => "ready",
        NodePhase::Draining => "draining",
    };
    let fine = phase == NodePhase::Ready && (up || !(backplane_asked || operated.ready_needs_backplane));
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let backplane = if up { "up" } else { "down" };
    let body = format!("{{\"status\":\"{state}\",\"backplane\":\"{backplane}\"}}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Begins a drain, as SIGTERM does. A request with an `Origin` comes from a web page and is refused: operators' tools send
/// none.
async fn drain(State(operated): State<Arc<Operated>>, headers: HeaderMap) -> StatusCode {
    if headers.contains_key(header::ORIGIN) {
        return StatusCode::FORBIDDEN;
    }
    // After this response has been written: a node without clients ends at once, and this thread with it.
    tokio::spawn(async move { operated.drain.begin() });
    StatusCode::ACCEPTED
}
