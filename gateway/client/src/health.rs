//! `fanfare health`: asks a node's admin listener once whether the node is ready, for the health checks of containers.

use crate::{
    connection::Gateway,
    http::HttpClient,
    output::{Failure, finish, print},
    tls::TlsOptions,
    url::GatewayUrl,
};
use clap::Args;
use http_body_util::Full;
use hyper::{Method, StatusCode};
use std::{process::ExitCode, time::Duration};

/// The admin listener of a healthy node responds in milliseconds even while the node's other threads are saturated.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// The flags of `fanfare health`.
#[derive(Debug, Args)]
pub(crate) struct HealthOptions {
    /// The admin listener, or its URL.
    #[arg(long, value_name = "HOST:PORT", env = "FANFARE_ADMIN", hide_env_values = true)]
    #[arg(default_value = "127.0.0.1:8081")]
    admin: String,
    #[command(flatten)]
    tls: TlsOptions,
}

pub(crate) async fn health(options: HealthOptions) -> ExitCode {
    finish("health", ask(&options).await)
}

async fn ask(options: &HealthOptions) -> Result<(), Failure> {
    let gateway = Gateway::without_token(GatewayUrl::parse_admin(&options.admin)?, &options.tls)?;
    let request = gateway.request(Method::GET, "/readyz").body(Full::default()).map_err(Failure::refused)?;
    let response = HttpClient::new(&gateway, TIME_LIMIT).send(request).await?;
    let body = String::from_utf8_lossy(response.body());
    if response.status() != StatusCode::OK {
        return Err(Failure::refused(format_args!("not ready: {} {}", response.status(), body.trim())));
    }
    // Docker keeps what a health check prints. A closed standard output does not make the node unhealthy.
    let _ = print(body.trim());
    Ok(())
}
