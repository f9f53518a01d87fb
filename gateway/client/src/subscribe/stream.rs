//! `sub` over HTTP streaming: the URL as for server-sent events, the frames as on a WebSocket, one per line. It owns the
//! body; `ndjson` splits the lines, `subscription` reads the frames.

use super::{
    body::Body,
    steps::{CONNECT_LIMIT, perform},
};
use crate::{
    connection::Gateway,
    ndjson::Lines,
    subscription::{Step, Subscription},
};
use std::convert::Infallible;

/// Follows until the body ends; gives the step that ended it.
pub(super) async fn follow(gateway: &Gateway, subscription: &mut Subscription) -> Result<Infallible, Step> {
    let target = subscription.target("stream");
    let mut body = Body::open(gateway, &target, "application/x-ndjson").await?;
    let mut lines = Lines::default();
    let mut silence = CONNECT_LIMIT;
    loop {
        let bytes = body.next(silence).await.map_err(|why| subscription.closed(None, &why))?;
        for line in lines.feed(&bytes).map_err(|too_long| Step::Stop(too_long.to_string()))? {
            match subscription.frame(&line) {
                Step::Begin { silence: allowed } => silence = allowed,
                step => perform(step, &line)?,
            }
        }
    }
}
