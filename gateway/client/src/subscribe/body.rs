//! The body of an answer that goes on, for `sse` and `stream`: asking for it, and its bytes as they come.

use super::{Gateway, PATIENCE, refused};
use crate::{
    http,
    subscription::{Step, stranger},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE},
};
use std::time::Duration;
use tokio::time::timeout;

/// A body.
pub(super) struct Body(Incoming);

impl Body {
    /// Asks for it; any other answer is a step.
    pub(super) async fn open(gateway: &Gateway, target: &str, kind: &str) -> Result<Self, Step> {
        let request = gateway.request(Request::get(gateway.server.path(target)).header(ACCEPT, kind), Bytes::new())?;
        let answer = http::open(&gateway.server, request.map(Full::new), PATIENCE).await;
        let answer = answer.map_err(|failure| Step::Reconnect { after: None, why: failure.text })?;
        if answer.status() == StatusCode::OK {
            let is = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            return if is.starts_with(kind) { Ok(Self(answer.into_body())) } else { Err(stranger()) };
        }
        let status = answer.status();
        match timeout(PATIENCE, http::whole(answer)).await {
            Ok(Ok(answer)) => Err(refused(status, &answer.headers, answer.refusal())),
            _ => Err(refused(status, &hyper::HeaderMap::new(), format!("refused with {status}"))),
        }
    }

    /// The next bytes, or how it ended.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Bytes, String> {
        match timeout(silence, self.0.frame()).await {
            Err(_) => Err("the server went silent".to_owned()),
            Ok(None) => Err("the connection ended".to_owned()),
            Ok(Some(Err(error))) => Err(format!("the connection broke: {error}")),
            // Trailers say nothing.
            Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
        }
    }
}
