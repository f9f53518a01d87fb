//! `sub` over server-sent events: the URL names the rooms and where each of them goes on. It ends where a browser's
//! EventSource would, but for what may pass. It owns the body; bytes are `event_stream`'s, frames `subscription`'s.

use super::{Gateway, PATIENCE, body::Body, perform};
use crate::{
    event_stream::{EventStream, Item},
    subscription::{Step, Subscription},
};
use std::convert::Infallible;

/// Follows until the body ends; gives the step that ended it.
pub(super) async fn follow(gateway: &Gateway, subscription: &mut Subscription) -> Result<Infallible, Step> {
    let target = subscription.target("sse");
    let mut body = Body::open(gateway, &target, "text/event-stream").await?;
    let mut events = EventStream::default();
    let mut silence = PATIENCE;
    loop {
        let bytes = body.next(silence).await.map_err(|why| subscription.closed(None, &why))?;
        let items = events.feed(&bytes).map_err(|long| Step::Over(long.to_string()))?;
        for item in items {
            match item {
                Item::Retry(ms) => subscription.retry(ms),
                Item::Id(cursor) => subscription.place(&cursor),
                Item::Event(data) => match subscription.frame(&data) {
                    Step::Begin { silence: allowed } => silence = allowed,
                    step => perform(step, &data)?,
                },
            }
        }
    }
}
