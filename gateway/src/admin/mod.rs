//! The operator's port: metrics, health, drain. It has its own thread and runtime, so that it answers while the shards are
//! saturated. It reads counters and switches only.

use crate::node::{drain::Drain, metrics::Metrics};
use axum::{
    Router,
    extract::{ConnectInfo, RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fanfare_broker::Broker;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

/// What the admin port reads.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
    /// Whether a lost backplane makes the node unready.
    pub(crate) ready_needs_backplane: bool,
}

/// Serves for as long as the process lives.
///
/// # Errors
/// The operating system refuses a thread or a runtime.
pub(crate) fn spawn(admin: Admin, listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async {
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let service = router(admin).into_make_service_with_connect_info::<SocketAddr>();
                    axum::serve(listener, service).await
                }
                Err(why) => Err(why),
            };
            if let Err(why) = served {
                tracing::error!(%why, "the admin listener ended");
            }
        });
    })?;
    Ok(())
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/drain", post(drain))
        .layer(from_fn_with_state(admin.clone(), note_front))
        .with_state(admin)
}

/// A balancer that asks for health, or a Prometheus, on another machine needs time to notice that this node goes.
async fn note_front(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        admin.drain.note_front();
    }
    next.run(request).await
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let text = admin.metrics.text(admin.broker.status());
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

/// 200 while the node takes new clients. A lost backplane alone does not make the node unready, since all nodes would leave the
/// load balancer at once; `?backplane=1` or the option `ready_needs_backplane` changes that.
async fn ready(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let up = admin.broker.status().up;
    let backplane_asked = query.as_deref().unwrap_or_default().split('&').any(|pair| pair == "backplane=1");
    let state = match (admin.drain.is_draining(), admin.drain.is_ready()) {
        (true, _) => "draining",
        (false, false) => "starting",
        (false, true) => "ready",
    };
    let fine = admin.drain.is_ready() && (up || !(backplane_asked || admin.ready_needs_backplane));
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let backplane = if up { "up" } else { "down" };
    let body = format!("{{\"status\":\"{state}\",\"backplane\":\"{backplane}\"}}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Begins a drain, as SIGTERM does. A request with an `Origin` comes from a web page and is refused: operators' tools send
/// none.
async fn drain(State(admin): State<Admin>, headers: HeaderMap) -> StatusCode {
    if headers.contains_key(header::ORIGIN) {
        return StatusCode::FORBIDDEN;
    }
    admin.drain.begin();
    StatusCode::ACCEPTED
}
