//! `fanfare sub`: follows rooms over any transport, prints every message as it came and reconnects until Ctrl-C. Each
//! transport is a file that owns its connection; what is said on it is `subscription`'s; this file owns the retries.

mod body;
mod poll;
mod sse;
mod stream;
mod ws;

use super::{
    Failure, Token,
    backoff::Backoff,
    finish, note, print,
    server::Server,
    subscription::{AFTER_MAX, Step, Subscription},
};
use bytes::Bytes;
use hyper::{
    HeaderMap, Request, StatusCode,
    header::{AUTHORIZATION, HeaderValue, RETRY_AFTER},
};
use std::{process::ExitCode, time::Duration};
use tokio::time::{Instant, sleep};

/// How long connecting and the first sign of life may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A session that lasted so long was a good one: the back-off starts again.
const GOOD: Duration = Duration::from_secs(10);

/// How to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-sent events.
    Sse,
    /// HTTP streaming: one JSON object per line.
    Stream,
    /// Long polling.
    Poll,
    /// Short polling: no request waits.
    ShortPoll,
}

impl Transport {
    /// All of them, the default first.
    pub(crate) const ALL: [Self; 5] = [Self::Ws, Self::Sse, Self::Stream, Self::Poll, Self::ShortPoll];

    /// As it is called on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Sse => "sse",
            Self::Stream => "stream",
            Self::Poll => "poll",
            Self::ShortPoll => "short-poll",
        }
    }

    /// The one that is called so; the default for a name that none has.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|transport| transport.name() == name).unwrap_or(Self::Ws)
    }
}

/// What to follow.
#[derive(Debug)]
pub(crate) struct Subscribe {
    /// Which rooms.
    pub(crate) rooms: Vec<String>,
    /// After which cursor of all of them.
    pub(crate) since: Option<String>,
    /// With how many earlier messages of each.
    pub(crate) history: Option<u32>,
    /// Over what.
    pub(crate) transport: Transport,
    /// The gateway.
    pub(crate) url: String,
    /// Who follows.
    pub(crate) token: Option<Token>,
}

/// Follows until Ctrl-C (exit code 0), until the reader of its output is gone (0), or until a retry cannot help (1).
pub(crate) async fn subscribe(order: Subscribe) -> ExitCode {
    let result = tokio::select! {
        result = follow(order) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    finish("sub", result)
}

/// The other side, and what every request to it says.
struct Gateway {
    server: Server,
    authorization: Option<HeaderValue>,
}

impl Gateway {
    fn request(&self, builder: hyper::http::request::Builder, body: Bytes) -> Result<Request<Bytes>, Step> {
        let mut request = builder.body(body).map_err(|error| Step::Over(error.to_string()))?;
        if let Some(token) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        Ok(request)
    }
}

async fn follow(order: Subscribe) -> Result<(), Failure> {
    let server = Server::parse(&order.url)?;
    let gateway = Gateway { server, authorization: order.token.as_ref().map(Token::header).transpose()? };
    let mut subscription = Subscription::new(order.rooms, order.since.as_deref(), order.history)?;
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let Err(end) = match order.transport {
            Transport::Ws => ws::follow(&gateway, &mut subscription).await,
            Transport::Sse => sse::follow(&gateway, &mut subscription).await,
            Transport::Stream => stream::follow(&gateway, &mut subscription).await,
            Transport::Poll => poll::follow(&gateway, &mut subscription, poll::WAIT_S).await,
            Transport::ShortPoll => poll::follow(&gateway, &mut subscription, 0).await,
        };
        let (after, why) = match end {
            Step::Reconnect { after, why } => (after, why),
            Step::Over(why) => return Err(Failure::refused(why)),
            _ => return Ok(()),
        };
        if begun.elapsed() >= GOOD {
            backoff.reset();
        }
        let own = backoff.next(getrandom::u32().unwrap_or(u32::MAX));
        let wait = after.unwrap_or(own);
        note("sub", &format!("{why}; reconnecting in {} ms", wait.as_millis()));
        sleep(wait).await;
    }
}

/// Does what a step about `text` says. The error is a step that ends the connection.
fn perform(step: Step, text: &str) -> Result<(), Step> {
    match step {
        // Nobody reads the output any more: that ends a pipeline and is no failure.
        Step::Message => print(text).map_err(|_| Step::Nothing),
        Step::Note(text) => {
            note("sub", &text);
            Ok(())
        }
        Step::Nothing | Step::Begin { .. } => Ok(()),
        Step::Reconnect { .. } | Step::Over(_) => Err(step),
    }
}

/// What another answer than the one that was asked for means: a client's fault stays one, everything else may pass. A
/// success that is none is how a server ends an EventSource.
fn refused(status: StatusCode, headers: &HeaderMap, why: String) -> Step {
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if (status.is_client_error() || status.is_success()) && !passes {
        return Step::Over(why);
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    Step::Reconnect { after: seconds.map(|seconds| Duration::from_secs(seconds).min(AFTER_MAX)), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_tried_again_only_where_that_can_help() {
        let step = |status: u16, headers: &HeaderMap| {
            refused(StatusCode::from_u16(status).unwrap(), headers, format!("refused with {status}"))
        };
        let mut headers = HeaderMap::new();
        for status in [204, 400, 401, 403, 404] {
            assert!(matches!(step(status, &headers), Step::Over(_)), "{status}");
        }
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        for status in [429, 500, 502, 503] {
            let step = step(status, &headers);
            assert!(matches!(step, Step::Reconnect { after: Some(after), .. } if after.as_secs() == 7), "{status}");
        }
    }
}
