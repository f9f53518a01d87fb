//! `fanfare sub`: follows rooms over any transport, prints every message as it came, and reconnects until Ctrl-C. `ws`,
//! `stream` and `poll` own the connection; `subscription` decides what frames mean; this file owns the retries.

mod items;
mod poll;
mod steps;
mod stream;
mod ws;

use crate::{
    connection::{Gateway, GatewayOptions},
    output::{Failure, finish, note},
    subscription::{Subscription, SubscriptionAction},
};
use clap::{Args, ValueEnum};
use items::{EventStream, Lines};
use std::{convert::Infallible, process::ExitCode, time::Duration};
use tokio::time::{Instant, sleep};

/// After a connection that lasted this long the back-off starts again from its shortest wait.
const GOOD: Duration = Duration::from_secs(10);
/// The ceiling of the first wait before a reconnect, and the highest ceiling of a later one.
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The flags of `fanfare sub`.
#[derive(Debug, Args)]
pub(crate) struct SubscribeOptions {
    /// Rooms to join.
    #[arg(value_name = "ROOM", required = true)]
    rooms: Vec<String>,
    /// Start after this cursor; with several rooms their cursors joined by ~.
    // An epoch may begin with a hyphen.
    #[arg(long, value_name = "CURSOR", allow_hyphen_values = true)]
    since: Option<String>,
    /// Start with the last N messages of each room.
    #[arg(long, value_name = "N", conflicts_with = "since")]
    history: Option<u32>,
    /// How messages come: WebSocket, server-sent events, HTTP streaming, long or short polling.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = SubscribeTransport::Ws)]
    transport: SubscribeTransport,
    #[command(flatten)]
    gateway: GatewayOptions,
}

/// A transport; its name on the command line is that of the variant, in lower case with a hyphen between words.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SubscribeTransport {
    Ws,
    Sse,
    Stream,
    Poll,
    // The server responds to every request at once.
    ShortPoll,
}

/// Follows until Ctrl-C (exit code 0), until the reader of its output is gone (0), or until a retry cannot help (1).
pub(crate) async fn subscribe(options: SubscribeOptions) -> ExitCode {
    let result = tokio::select! {
        result = follow(options) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    finish("sub", result)
}

async fn follow(options: SubscribeOptions) -> Result<(), Failure> {
    let gateway = Gateway::new(&options.gateway)?;
    let mut subscription = Subscription::new(options.rooms, options.since.as_deref(), options.history)?;
    let mut failed_in_a_row = 0_u32;
    loop {
        let begun = Instant::now();
        let Err(end) = attempt(options.transport, &gateway, &mut subscription).await;
        let (after, why) = match end {
            SubscriptionAction::Reconnect { after, why } => (after, why),
            SubscriptionAction::Stop(why) => return Err(Failure::refused(why)),
            _ => return Ok(()),
        };
        if begun.elapsed() >= GOOD {
            failed_in_a_row = 0;
        }
        let wait = after.unwrap_or(backoff(failed_in_a_row, getrandom::u32().unwrap_or(u32::MAX)));
        failed_in_a_row = failed_in_a_row.saturating_add(1);
        note("sub", &format!("{why}; reconnecting in {} ms", wait.as_millis()));
        sleep(wait).await;
    }
}

/// Connects once and follows; gives the step that ended it.
async fn attempt(
    transport: SubscribeTransport,
    gateway: &Gateway,
    subscription: &mut Subscription,
) -> Result<Infallible, SubscriptionAction> {
    match transport {
        SubscribeTransport::Ws => ws::follow(gateway, subscription).await,
        SubscribeTransport::Sse => {
            let mut events = EventStream::default();
            stream::follow(gateway, subscription, "sse", "text/event-stream", |bytes| events.feed(bytes)).await
        }
        SubscribeTransport::Stream => {
            let mut lines = Lines::default();
            stream::follow(gateway, subscription, "stream", "application/x-ndjson", |bytes| lines.feed(bytes)).await
        }
        SubscribeTransport::Poll => poll::follow(gateway, subscription, poll::WAIT_S).await,
        SubscribeTransport::ShortPoll => poll::follow(gateway, subscription, 0).await,
    }
}

/// How long to wait after this many failed attempts in a row: exponential with full jitter (AWS Architecture Blog,
/// "Exponential Backoff And Jitter"), so that clients which lost their connections together do not reconnect together.
/// 32 random bits choose the wait evenly between zero and the ceiling.
fn backoff(failed: u32, random: u32) -> Duration {
    // 200 ms * 2^6 is more than 10 s, so a larger exponent changes nothing.
    let ceiling = (WAIT_MIN * 2_u32.pow(failed.min(6))).min(WAIT_MAX);
    ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_of_the_wait_doubles_to_ten_seconds() {
        let waits: Vec<_> = (0..8).map(|failed| backoff(failed, u32::MAX).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!((backoff(u32::MAX, u32::MAX), backoff(8, 0)), (WAIT_MAX, Duration::ZERO));
    }
}
