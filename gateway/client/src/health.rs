//! `fanfare health`: whether the node beside it is ready, for container health checks. It asks `/readyz` once.

use super::{Failure, finish, http::Http, print, server::Server};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use std::{process::ExitCode, time::Duration};

/// How long a healthy node may take: its admin listener answers in milliseconds while the data plane is saturated.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to ask.
#[derive(Debug)]
pub(crate) struct Health {
    /// The admin listener; an unspecified address is asked on loopback.
    pub(crate) admin: String,
}

/// Asks; success is an answer of 200.
pub(crate) async fn health(order: Health) -> ExitCode {
    finish("health", ask(order).await)
}

async fn ask(order: Health) -> Result<(), Failure> {
    let mut http = Http::new(Server::of_listener(&order.admin), PATIENCE);
    let request = Request::get("/readyz").body(Full::<Bytes>::default()).map_err(Failure::refused)?;
    let answer = http.send(request).await?;
    let body = String::from_utf8_lossy(&answer.body);
    if answer.status != StatusCode::OK {
        return Err(Failure::refused(format_args!("not ready: {} {}", answer.status, body.trim())));
    }
    // Docker keeps what a health check prints; a closed standard output does not make the node unhealthy.
    let _ = print(body.trim());
    Ok(())
}
