//! `sub` by polling, long and short: one request after the other, each from the cursor of the response before. It owns the
//! connection and the pauses; `subscription` reads the responses.

use super::steps::{CONNECT_LIMIT, not_connected, perform, refused};
use crate::{
    connection::Gateway,
    http::{HttpClient, refusal},
    output::note,
    subscription::{PollRequest, Subscription, SubscriptionAction, unknown_protocol},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode,
    header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
};
use std::{convert::Infallible, time::Duration};
use tokio::time::{Instant, sleep};

/// How long the server may hold a long poll, in seconds; shorter than every usual time-out of proxies.
pub(super) const WAIT_S: u64 = 25;
/// The shortest time between two polls without a message, so that a server that should hold a poll and responds at once is
/// not polled in a tight loop.
const EMPTY_MIN: Duration = Duration::from_millis(500);
/// The longest pause of short polling that the client chooses by itself.
const UNCHANGED_MAX: Duration = Duration::from_secs(30);

/// Polls until something fails; gives the step that ended it. A wait of 0 is short polling.
pub(super) async fn follow(
    gateway: &Gateway,
    subscription: &mut Subscription,
    wait_s: u64,
) -> Result<Infallible, SubscriptionAction> {
    let mut client = HttpClient::new(gateway, CONNECT_LIMIT + Duration::from_secs(wait_s));
    // The first poll never waits, so that the user learns at once that the rooms are followed, and which gaps there are.
    let mut is_first = true;
    let mut pace = PollInterval::default();
    let mut tag: Option<HeaderValue> = None;
    loop {
        let begun = Instant::now();
        let wanted = subscription.poll_request(if is_first { 0 } else { wait_s });
        let response = client.send(request(gateway, wanted, tag.take())?).await.map_err(not_connected)?;
        let pause = match response.status() {
            StatusCode::OK => {
                let body = str::from_utf8(response.body()).map_err(|_| unknown_protocol())?;
                let result = subscription.poll_response(body, is_first)?;
                result.notes.iter().for_each(|text| note("sub", text));
                result.messages.iter().try_for_each(|message| perform(SubscriptionAction::Message, message))?;
                let has_messages = result.more || !result.messages.is_empty();
                match std::mem::take(&mut is_first) && wait_s > 0 {
                    true => Duration::ZERO,
                    false => pace.answered(result.next, has_messages, begun.elapsed()),
                }
            }
            StatusCode::NOT_MODIFIED => pace.unchanged(),
            status => return Err(refused(status, response.headers(), refusal(&response))),
        };
        if wait_s == 0 {
            tag = response.headers().get(ETAG).cloned();
        }
        sleep(pause).await;
    }
}

fn request(
    gateway: &Gateway,
    wanted: PollRequest,
    tag: Option<HeaderValue>,
) -> Result<Request<Full<Bytes>>, SubscriptionAction> {
    let request = match wanted {
        PollRequest::Get(target) => {
            let request = gateway.request(Method::GET, &target);
            tag.into_iter().fold(request, |request, tag| request.header(IF_NONE_MATCH, tag)).body(Full::default())
        }
        PollRequest::Post(body) => {
            let request = gateway.request(Method::POST, "/v1/poll").header(CONTENT_TYPE, "application/json");
            request.body(Full::from(body))
        }
    };
    request.map_err(|error| SubscriptionAction::Stop(error.to_string()))
}

/// How long to pause between two polls.
#[derive(Debug, Default)]
struct PollInterval {
    last: Duration,
}

impl PollInterval {
    /// The pause after a response that took `took`: what the server asks for, but no tight loop without messages.
    fn answered(&mut self, next: Duration, has_messages: bool, took: Duration) -> Duration {
        self.last = next;
        match has_messages {
            true => next,
            false => next.max(EMPTY_MIN.saturating_sub(took)),
        }
    }

    /// The pause after a 304, which has no `next_ms`. The server's own pause is half the time since the last message; as
    /// long as nothing is new, each pause is half as long again as the one before.
    fn unchanged(&mut self) -> Duration {
        self.last = (self.last.max(EMPTY_MIN) * 3 / 2).min(UNCHANGED_MAX);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_sets_the_pace() {
        let ms = Duration::from_millis;
        let mut pace = PollInterval::default();
        assert_eq!(pace.answered(ms(0), true, ms(3)), ms(0), "messages: poll again at once");
        assert_eq!(pace.answered(ms(0), false, ms(25_000)), ms(0), "the poll was held");
        assert_eq!(pace.answered(ms(0), false, ms(100)), ms(400), "the poll was not held: no tight loop");
        assert_eq!(pace.answered(ms(4000), false, ms(3)), ms(4000));
        assert_eq!([pace.unchanged(), pace.unchanged()], [ms(6000), ms(9000)]);
        for _ in 0..9 {
            pace.unchanged();
        }
        assert_eq!(pace.unchanged(), UNCHANGED_MAX);
        assert_eq!(pace.answered(ms(1000), true, ms(3)), ms(1000));
    }
}
