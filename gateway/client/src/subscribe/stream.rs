//! `sub` over server-sent events and HTTP streaming: the URL names the rooms and their cursors. It owns the body of the
//! response; `items` splits it, `subscription` reads the frames.

use super::{
    items::StreamItem,
    steps::{CONNECT_LIMIT, not_connected, perform, refused},
};
use crate::{
    connection::Gateway,
    http::{open_stream, read_whole, refusal},
    subscription::{Subscription, SubscriptionAction, unknown_protocol},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE},
};
use std::convert::Infallible;
use tokio::time::timeout;

/// Follows until the body, of this content type, ends; gives the step that ended it. An event stream ends where a
/// browser's EventSource would end it, except for failures that may pass.
pub(super) async fn follow(
    gateway: &Gateway,
    subscription: &mut Subscription,
    transport: &str,
    content_type: &str,
    mut split: impl FnMut(&[u8]) -> Result<Vec<StreamItem>, &'static str>,
) -> Result<Infallible, SubscriptionAction> {
    let mut body = open(gateway, &subscription.target(transport), content_type).await?;
    let mut silence = CONNECT_LIMIT;
    loop {
        let bytes = match timeout(silence, body.frame()).await {
            Err(_) => return Err(subscription.closed(None, "the server went silent")),
            Ok(None) => return Err(subscription.closed(None, "the connection ended")),
            Ok(Some(Err(error))) => return Err(subscription.closed(None, &format!("the connection broke: {error}"))),
            // Trailers have no data.
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        for item in split(&bytes).map_err(|too_long| SubscriptionAction::Stop(too_long.to_owned()))? {
            match item {
                StreamItem::Retry(ms) => subscription.retry(ms),
                StreamItem::Id(cursor) => subscription.advance(&cursor),
                StreamItem::Event(data) => match subscription.frame(&data) {
                    SubscriptionAction::Begin { silence: allowed } => silence = allowed,
                    step => perform(step, &data)?,
                },
            }
        }
    }
}

/// The body of the response, or the step that follows from any other response.
async fn open(gateway: &Gateway, target: &str, content_type: &str) -> Result<Incoming, SubscriptionAction> {
    let request = gateway.request(Method::GET, target).header(ACCEPT, content_type).body(Full::default());
    let request = request.map_err(|error| SubscriptionAction::Stop(error.to_string()))?;
    let response = open_stream(gateway, request, CONNECT_LIMIT).await.map_err(not_connected)?;
    let status = response.status();
    if status == StatusCode::OK {
        let found = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_right = found.is_some_and(|found| found.starts_with(content_type));
        return if is_right { Ok(response.into_body()) } else { Err(unknown_protocol()) };
    }
    match timeout(CONNECT_LIMIT, read_whole(response)).await {
        Ok(Ok(response)) => Err(refused(status, response.headers(), refusal(&response))),
        _ => Err(refused(status, &HeaderMap::new(), format!("refused with {status}"))),
    }
}
