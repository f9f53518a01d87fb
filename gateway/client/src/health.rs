//! `fanfare health`: asks a node's admin listener once whether the node is ready, for the health checks of containers.

use crate::{
    connection::Gateway,
    failure::Failure,
    http::HttpClient,
    output::{finish, print},
    url::GatewayUrl,
};
use http_body_util::Full;
use hyper::{Method, StatusCode};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// The admin listener of a healthy node responds in milliseconds even while the node's other threads are saturated.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// What `fanfare health` is asked to do.
#[derive(Debug)]
pub(crate) struct HealthOptions {
    /// The admin listener, as `host:port` or as a URL.
    pub(crate) admin: String,
    /// The authorities to trust in place of the public ones.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Ends with success if the node is ready.
pub(crate) async fn health(options: HealthOptions) -> ExitCode {
    finish("health", ask(&options).await)
}

async fn ask(options: &HealthOptions) -> Result<(), Failure> {
    let gateway = Gateway::at(GatewayUrl::parse_admin(&options.admin)?, options.ca_file.as_ref())?;
    let request = gateway.request(Method::GET, "/readyz").body(Full::default()).map_err(Failure::refused)?;
    let response = HttpClient::new(&gateway, TIME_LIMIT).send(request).await?;
    let body = String::from_utf8_lossy(&response.body);
    if response.status != StatusCode::OK {
        return Err(Failure::refused(format_args!("not ready: {} {}", response.status, body.trim())));
    }
    // Docker keeps what a health check prints. A closed standard output does not make the node unhealthy.
    let _ = print(body.trim());
    Ok(())
}
