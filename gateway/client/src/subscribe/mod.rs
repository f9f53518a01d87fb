//! `fanfare sub`: follows rooms over any transport, prints every message as it came, and reconnects until Ctrl-C. Each
//! transport is a file that owns its connection; `subscription` decides what frames mean; this file owns the retries.

mod body;
mod poll;
mod sse;
mod steps;
mod stream;
mod ws;

use crate::{
    backoff::Backoff,
    connection::{Gateway, GatewayOptions},
    failure::Failure,
    output::{finish, note},
    subscription::{Step, Subscription},
};
use clap::{Args, ValueEnum};
use std::{process::ExitCode, time::Duration};
use tokio::time::{Instant, sleep};

/// After a connection that lasted this long the back-off starts again from its shortest wait.
const GOOD: Duration = Duration::from_secs(10);

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
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Transport::Ws)]
    transport: Transport,
    #[command(flatten)]
    gateway: GatewayOptions,
}

/// A transport; its name on the command line is that of the variant, in lower case with a hyphen between words.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Transport {
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
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let Err(end) = match options.transport {
            Transport::Ws => ws::follow(&gateway, &mut subscription).await,
            Transport::Sse => sse::follow(&gateway, &mut subscription).await,
            Transport::Stream => stream::follow(&gateway, &mut subscription).await,
            Transport::Poll => poll::follow(&gateway, &mut subscription, poll::WAIT_S).await,
            Transport::ShortPoll => poll::follow(&gateway, &mut subscription, 0).await,
        };
        let (after, why) = match end {
            Step::Reconnect { after, why } => (after, why),
            Step::Stop(why) => return Err(Failure::refused(why)),
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
