//! The operator's port: metrics, health, drain. It has its own thread and runtime, so that it answers while the shards are
//! saturated. It reads counters and switches only.

use crate::{
    essential::essential,
    http::check_host,
    node::{Node, drain::NodePhase},
};
use axum::{
    Router,
    extract::{ConnectInfo, RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, options, post},
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

/// Serves for as long as the process lives. The error: the operating system refuses a thread or a runtime.
pub(crate) fn spawn(node: Arc<Node>, listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(essential("admin listener", async {
            let service = router(node).into_make_service_with_connect_info::<SocketAddr>();
            let _ = axum::serve(listener, service).await; // never returns
        }));
    })?;
    Ok(())
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/drain", post(drain))
        // HAProxy's `option httpchk` without a path asks `OPTIONS /`.
        .route("/", options(ready))
        .layer(from_fn_with_state(Arc::clone(&node), check))
        .with_state(node)
}

/// Checks `Host`. A balancer that asks for health, or a Prometheus, on another machine needs time to notice that this node
/// goes.
async fn check(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(refusal) = check_host(request.version(), request.headers()) {
        return refusal.into_response();
    }
    if !peer.ip().to_canonical().is_loopback() {
        node.drain.note_proxy();
    }
    next.run(request).await
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let text = node.metrics.text(node.broker.status());
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

/// 200 while the node takes new clients. A lost backplane alone does not make the node unready, since all nodes would leave the
/// load balancer at once; `?backplane=1` or the option `ready_needs_backplane` changes that.
async fn ready(State(node): State<Arc<Node>>, RawQuery(query): RawQuery) -> Response {
    let up = node.broker.status().up;
    let backplane_asked = query.as_deref().unwrap_or_default().split('&').any(|pair| pair == "backplane=1");
    let phase = node.drain.phase();
    let state = match phase {
        NodePhase::Starting => "starting",
        NodePhase::Ready => "ready",
        NodePhase::Draining => "draining",
    };
    let fine = phase == NodePhase::Ready && (up || !(backplane_asked || node.ready_needs_backplane));
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let backplane = if up { "up" } else { "down" };
    let body = format!("{{\"status\":\"{state}\",\"backplane\":\"{backplane}\"}}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Begins a drain, as SIGTERM does. A request with an `Origin` comes from a web page and is refused: operators' tools send
/// none.
async fn drain(State(node): State<Arc<Node>>, headers: HeaderMap) -> StatusCode {
    if headers.contains_key(header::ORIGIN) {
        return StatusCode::FORBIDDEN;
    }
    node.drain.begin();
    StatusCode::ACCEPTED
}
