//! `POST /v1/sessions/{secret}`: commands of a session that cannot send over its own connection. Any node takes them and
//! passes them to the session's shard (`shard::posts`). Here are path and response only.

use super::body;
use crate::{
    http::problem::json,
    protocol::{address::PostAddress, error::Refusal, post::commands},
    shard::Shard,
};
use axum::body::Body;
use hyper::{Response, StatusCode, body::Incoming};

/// The secret in the path, if it is a path of posts.
pub(super) fn secret(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/sessions/")
}

/// Carries out the posted commands.
///
/// # Errors
/// The refusal to respond with.
pub(super) async fn respond(shard: &Shard, secret: &str, body: Incoming) -> Result<Response<Body>, Refusal> {
    let address: PostAddress = secret.parse().map_err(|()| Refusal::session_gone())?;
    let body = body::read(body).await?;
    commands(std::str::from_utf8(&body).map_err(|_| Refusal::bad_request("the body is not UTF-8"))?)?;
    Ok(json(StatusCode::OK, shard.post(address, body).await?.into()))
}
