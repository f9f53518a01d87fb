//! Reads the body of a request to a transport, within limits. Called by `post` and `poll`; the HTTP API has axum's limits.

use crate::protocol::error::{ErrorCode, Refusal};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::time::Duration;

/// Bytes of a body: as many as a batch of publishes may have.
const BODY_BYTES: usize = 1 << 20;
/// Time for a body to come in.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A whole body.
///
/// # Errors
/// It is too large, too slow, or it broke off.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let body = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await;
    let body = body.map_err(|_| Refusal::bad_request("the body did not come in within 10 seconds"))?;
    body.map(|body| body.to_bytes()).map_err(|why| match why.downcast_ref::<LengthLimitError>() {
        Some(_) => Refusal::new(ErrorCode::MessageTooLarge, format!("a body has at most {BODY_BYTES} bytes")),
        None => Refusal::bad_request("the body could not be read"),
    })
}
