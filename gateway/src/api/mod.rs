//! The HTTP API (docs/protocol.md, section 7): for back ends in any language. Requests come from `transport::http`, after
//! the checks that all requests pass; everything here goes straight to the broker, so that any node can take any request.

mod assets;
mod buffer;
mod kick;
mod publish;
mod rooms;

use crate::{
    http::problem::{method_not_allowed, problem},
    node::Node,
    policy::limits::ENVELOPE_BYTES,
    protocol::error::{ErrorCode, Refusal},
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRef, Path, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use buffer::Buffer;
use fanfare_broker::Room;
use std::sync::Arc;

/// Bytes of a batch's body.
const BATCH_BYTES: usize = 1 << 20;

/// What the routes share.
#[derive(Clone)]
struct Api {
    node: Arc<Node>,
    /// Publishes that wait for the backplane (`?buffer=`).
    buffer: Arc<Buffer>,
}

impl FromRef<Api> for Arc<Node> {
    fn from_ref(api: &Api) -> Self {
        Self::clone(&api.node)
    }
}

/// The routes. A clone per connection is a few reference counts.
pub(crate) fn router(node: Arc<Node>, with_demo: bool) -> Router {
    // White space goes before the message limit is applied, so a body may be somewhat longer than what it stands for.
    let body = DefaultBodyLimit::max(node.limits.message_bytes.saturating_mul(2) + ENVELOPE_BYTES);
    Router::new()
        .route("/v1/rooms", get(rooms::list).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}", get(rooms::occupancy).post(publish::one).fallback(|| wrong_method("GET, POST")))
        .layer(body)
        .route("/v1/rooms/{room}/history", get(rooms::history).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}/presence", get(rooms::presence).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}/members/{user}", delete(kick::member).fallback(|| wrong_method("DELETE")))
        .route("/v1/users/{user}", delete(kick::user).fallback(|| wrong_method("DELETE")))
        .route(
            "/v1/publish",
            post(publish::batch).fallback(|| wrong_method("POST")).layer(DefaultBodyLimit::max(BATCH_BYTES)),
        )
        .merge(assets::router(with_demo))
        .fallback(not_found)
        .with_state(Api { buffer: Arc::new(Buffer::new(Arc::clone(&node.metrics))), node })
}

async fn wrong_method(allowed: &'static str) -> Response {
    method_not_allowed(allowed)
}

async fn not_found() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "there is nothing at this path")
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem(&self)
    }
}

/// What stands in a path's braces, percent-decoded.
type Named<T> = Result<Path<T>, PathRejection>;

/// The room in a path.
fn room(path: Named<String>) -> Result<Room, Refusal> {
    Ok(Room::parse(&named(path)?)?)
}

fn named<T>(path: Named<T>) -> Result<T, Refusal> {
    path.map(|Path(names)| names).map_err(|_| Refusal::bad_request("the path is not percent-encoded UTF-8"))
}
