//! `POST /v1/sessions/{secret}`: commands of a session that cannot send over its own connection. Any node takes them and
//! passes them to the session's shard (`shard::posted`). Here are path, body and response only; `poll` reads its bodies here
//! too. The HTTP API has axum's limits.

use crate::{
    http::json,
    protocol::{
        address::PostAddress,
        control::commands,
        error::{ErrorCode, Refusal},
    },
    shard::Shard,
};
use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Response, StatusCode, body::Incoming};
use std::time::Duration;

/// Bytes of a body: as many as a batch of publishes may have.
const BODY_BYTES: usize = 1 << 20;
/// Time for a body to come in.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The secret in the path, if it is a path of posts.
pub(super) fn secret(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/sessions/")
}

/// Carries out the posted commands; the error is the refusal to respond with.
pub(super) async fn respond(shard: &Shard, secret: &str, body: Incoming) -> Result<Response<Body>, Refusal> {
    let address: PostAddress = secret.parse().map_err(|()| Refusal::session_gone())?;
    let body = read(body).await?;
    commands(std::str::from_utf8(&body).map_err(|_| Refusal::bad_request("the body is not UTF-8"))?)?;
    Ok(json(StatusCode::OK, shard.post(address, body).await?.into()))
}

/// A whole body; the error says that it is too large, too slow, or broke off.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let body = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await;
    let body = body.map_err(|_| Refusal::bad_request("the body did not come in within 10 seconds"))?;
    body.map(|body| body.to_bytes()).map_err(|why| match why.downcast_ref::<LengthLimitError>() {
        Some(_) => Refusal::new(ErrorCode::MessageTooLarge, format!("a body has at most {BODY_BYTES} bytes")),
        None => Refusal::bad_request("the body could not be read"),
    })
}
