//! `sub` by polling, long and short: one request after the other, each from the place to which the one before has led. It
//! owns the connection and the pauses; what answers mean is `subscription`'s.

use super::{Gateway, PATIENCE, perform, refused};
use crate::{
    http::Http,
    note,
    subscription::{Ask, Step, Subscription, stranger},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
};
use std::{convert::Infallible, time::Duration};
use tokio::time::{Instant, sleep};

/// How long the server may hold a long poll; below every usual time-out of proxies.
pub(super) const WAIT_S: u64 = 25;
/// The shortest time between two polls without a message: a server that should hold a poll and does not is not asked in a
/// circle.
const EMPTY_MIN: Duration = Duration::from_millis(500);
/// The longest pause of short polling that is not the server's own.
const UNCHANGED_MAX: Duration = Duration::from_secs(30);

/// Polls until something fails; gives the step that ended it. A wait of 0 is short polling.
pub(super) async fn follow(
    gateway: &Gateway,
    subscription: &mut Subscription,
    wait_s: u64,
) -> Result<Infallible, Step> {
    subscription.begin_polling();
    let mut http = Http::new(gateway.server.clone(), PATIENCE + Duration::from_secs(wait_s));
    // The first poll never waits, so that the user knows at once that the rooms are followed, and what is lost.
    let mut is_first = true;
    let mut pace = Pace::default();
    let mut tag: Option<HeaderValue> = None;
    loop {
        let begun = Instant::now();
        let request = match subscription.ask(if is_first { 0 } else { wait_s }) {
            Ask::Get(target) => {
                let request = Request::get(gateway.server.path(&target));
                let request = tag.take().into_iter().fold(request, |request, tag| request.header(IF_NONE_MATCH, tag));
                gateway.request(request, Bytes::new())?
            }
            Ask::Post(body) => {
                let request = Request::post(gateway.server.path("/v1/poll"));
                gateway.request(request.header(CONTENT_TYPE, "application/json"), body.into())?
            }
        };
        let answer = http.send(request.map(Full::new)).await;
        let answer = answer.map_err(|failure| subscription.closed(None, &failure.text))?;
        let pause = match answer.status {
            StatusCode::OK => {
                let body = str::from_utf8(&answer.body).map_err(|_| stranger())?;
                let taken = subscription.answer(body)?;
                taken.notes.iter().for_each(|text| note("sub", text));
                taken.messages.iter().try_for_each(|message| perform(Step::Message, message))?;
                let brought_something = taken.more || !taken.messages.is_empty();
                match std::mem::take(&mut is_first) && wait_s > 0 {
                    true => Duration::ZERO,
                    false => pace.answered(taken.next, brought_something, begun.elapsed()),
                }
            }
            StatusCode::NOT_MODIFIED => pace.unchanged(),
            status => return Err(refused(status, &answer.headers, answer.refusal())),
        };
        if wait_s == 0 {
            tag = answer.headers.get(ETAG).cloned();
        }
        sleep(pause).await;
    }
}

/// How long to pause between two polls.
#[derive(Debug, Default)]
struct Pace {
    last: Duration,
}

impl Pace {
    /// After an answer: what the server says, or at once.
    fn answered(&mut self, next: Duration, brought_something: bool, took: Duration) -> Duration {
        self.last = next;
        match brought_something {
            true => next,
            false => next.max(EMPTY_MIN.saturating_sub(took)),
        }
    }

    /// After 304, which says no pause. The server's own is half the time since the last message; with nothing new that is
    /// half as long again each time.
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
        let mut pace = Pace::default();
        assert_eq!(pace.answered(ms(0), true, ms(3)), ms(0), "messages: at once");
        assert_eq!(pace.answered(ms(0), false, ms(25_000)), ms(0), "it was held");
        assert_eq!(pace.answered(ms(0), false, ms(100)), ms(400), "it was not: no circle");
        assert_eq!(pace.answered(ms(4000), false, ms(3)), ms(4000));
        assert_eq!([pace.unchanged(), pace.unchanged()], [ms(6000), ms(9000)]);
        for _ in 0..9 {
            pace.unchanged();
        }
        assert_eq!(pace.unchanged(), UNCHANGED_MAX);
        assert_eq!(pace.answered(ms(1000), true, ms(3)), ms(1000));
    }
}
