//! The body of a streaming response, for `sse` and `stream`: the request for it, and its bytes as they come.

use super::steps::{CONNECT_LIMIT, not_connected, refused};
use crate::{
    connection::Gateway,
    http,
    subscription::{Step, unknown_protocol},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE},
};
use std::time::Duration;
use tokio::time::timeout;

/// A streaming response's body.
pub(super) struct Body(Incoming);

impl Body {
    /// Requests `target` with the content type `kind`.
    ///
    /// # Errors
    /// Any other response, as the step that follows from it.
    pub(super) async fn open(gateway: &Gateway, target: &str, kind: &str) -> Result<Self, Step> {
        let request = gateway.request(Method::GET, target).header(ACCEPT, kind).body(Full::default());
        let request = request.map_err(|error| Step::Stop(error.to_string()))?;
        let response = http::open_stream(gateway, request, CONNECT_LIMIT).await.map_err(not_connected)?;
        if response.status() == StatusCode::OK {
            let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let is_kind = content_type.is_some_and(|content_type| content_type.starts_with(kind));
            return if is_kind { Ok(Self(response.into_body())) } else { Err(unknown_protocol()) };
        }
        let status = response.status();
        match timeout(CONNECT_LIMIT, http::read_whole(response)).await {
            Ok(Ok(response)) => Err(refused(status, &response.headers, response.refusal())),
            _ => Err(refused(status, &HeaderMap::new(), format!("refused with {status}"))),
        }
    }

    /// The next bytes, or how the body ended.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Bytes, String> {
        match timeout(silence, self.0.frame()).await {
            Err(_) => Err("the server went silent".to_owned()),
            Ok(None) => Err("the connection ended".to_owned()),
            Ok(Some(Err(error))) => Err(format!("the connection broke: {error}")),
            // Trailers have no data.
            Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
        }
    }
}
