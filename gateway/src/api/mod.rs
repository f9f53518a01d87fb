//! The HTTP API (docs/protocol.md, section 9), for back ends in any language, and the files that the gateway serves.
//! Requests come from `transport::http`, after the checks that all requests pass. Everything goes straight to the broker,
//! so any node can take any request.

mod assets;
mod path;
mod publish;
mod rooms;

pub(crate) use assets::is_for_every_origin;

use crate::{
    http::method_not_allowed,
    node::Node,
    policy::limits::ENVELOPE_BYTES,
    protocol::error::{ErrorCode, Refusal},
};
use axum::{
    Router,
    body::Body,
    extract::DefaultBodyLimit,
    http::Response,
    routing::{delete, get, post},
};
use std::sync::Arc;

/// All routes. A clone of the router costs a few reference counts.
pub(crate) fn router(node: Arc<Node>, with_demo: bool) -> Router {
    // The message limit is applied after white space has been removed, so a body may be longer than its message.
    let body = DefaultBodyLimit::max(node.limits.message_bytes.saturating_mul(2) + ENVELOPE_BYTES);
    Router::new()
        .route("/v1/rooms", get(rooms::list).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}", get(rooms::occupancy).post(publish::one).fallback(|| wrong_method("GET, POST")))
        .layer(body)
        .route("/v1/rooms/{room}/history", get(rooms::history).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}/presence", get(rooms::presence).fallback(|| wrong_method("GET")))
        .route("/v1/rooms/{room}/members/{user}", delete(rooms::kick).fallback(|| wrong_method("DELETE")))
        .route("/v1/users/{user}", delete(rooms::disconnect).fallback(|| wrong_method("DELETE")))
        .route(
            "/v1/publish",
            post(publish::batch).fallback(|| wrong_method("POST")).layer(DefaultBodyLimit::max(publish::BATCH_BYTES)),
        )
        .merge(assets::router(with_demo))
        .fallback(not_found)
        .with_state(node)
}

async fn wrong_method(allowed: &'static str) -> Response<Body> {
    method_not_allowed(allowed)
}

async fn not_found() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "there is nothing at this path")
}
