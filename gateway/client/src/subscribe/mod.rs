//! `fanfare sub`: follows rooms over any transport, prints every message as it came, and reconnects until Ctrl-C. Each
//! transport is a file that owns its connection; `subscription` decides what frames mean; this file owns the retries.

mod body;
mod poll;
mod sse;
mod steps;
mod stream;
mod transport;
mod ws;

pub(crate) use transport::Transport;

use crate::{
    backoff::Backoff,
    connection::{Gateway, GatewayOptions},
    failure::Failure,
    output::{finish, note},
    subscription::{Step, Subscription},
};
use std::{process::ExitCode, time::Duration};
use tokio::time::{Instant, sleep};

/// After a connection that lasted this long the back-off starts again from its shortest wait.
const GOOD: Duration = Duration::from_secs(10);

/// What `fanfare sub` is asked to do.
#[derive(Debug)]
pub(crate) struct SubscribeOptions {
    /// The rooms to follow.
    pub(crate) rooms: Vec<String>,
    /// The cursor of all of them to start after.
    pub(crate) since: Option<String>,
    /// How many earlier messages of each to start with.
    pub(crate) history: Option<u32>,
    /// The transport to use.
    pub(crate) transport: Transport,
    /// The gateway.
    pub(crate) gateway: GatewayOptions,
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
