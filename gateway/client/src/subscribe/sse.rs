//! `sub` over server-sent events: the URL names the rooms and their cursors. It ends where a browser's EventSource would,
//! except for failures that may pass. It owns the body; `event_stream` reads the bytes, `subscription` the frames.

use super::{
    body::Body,
    steps::{CONNECT_LIMIT, perform},
};
use crate::{
    connection::Gateway,
    event_stream::{EventStream, Item},
    subscription::{Step, Subscription},
};
use std::convert::Infallible;

/// Follows until the body ends; gives the step that ended it.
pub(super) async fn follow(gateway: &Gateway, subscription: &mut Subscription) -> Result<Infallible, Step> {
    let target = subscription.target("sse");
    let mut body = Body::open(gateway, &target, "text/event-stream").await?;
    let mut events = EventStream::default();
    let mut silence = CONNECT_LIMIT;
    loop {
        let bytes = body.next(silence).await.map_err(|why| subscription.closed(None, &why))?;
        let items = events.feed(&bytes).map_err(|too_long| Step::Stop(too_long.to_string()))?;
        for item in items {
            match item {
                Item::Retry(ms) => subscription.retry(ms),
                Item::Id(cursor) => subscription.advance(&cursor),
                Item::Event(data) => match subscription.frame(&data) {
                    Step::Begin { silence: allowed } => silence = allowed,
                    step => perform(step, &data)?,
                },
            }
        }
    }
}
