//! `fanfare pub`: publishes over HTTP and prints the cursor of each message. Every message has an idempotency key, so that
//! a request whose connection broke can be sent again without publishing twice. The data is sent as it was given.

use crate::{
    connection::{Gateway, GatewayOptions},
    http::{HttpClient, refusal},
    output::{Failure, finish, print},
    url::percent_encoded,
};
use clap::Args;
use http_body_util::Full;
use hyper::{Method, StatusCode, header::CONTENT_TYPE};
use std::{
    io::{BufRead as _, Read as _},
    process::ExitCode,
    time::Duration,
};

/// The gateway responds within a second even while its backplane is away; the rest is for the network.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The longest line of standard input: twice the largest message that a gateway can be configured for, since white space
/// does not count there.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// The flags of `fanfare pub`.
#[derive(Debug, Args)]
pub(crate) struct PublishOptions {
    /// The room.
    #[arg(value_name = "ROOM")]
    room: String,
    /// The message, as JSON; - reads one message per line from standard input.
    #[arg(value_name = "DATA", allow_negative_numbers = true)]
    data: String,
    /// The message's event name.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Idempotency key: a repetition within 5 minutes publishes nothing new [default: a random key for each message].
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    gateway: GatewayOptions,
}

impl PublishOptions {
    /// Checks what the command line's own parser does not know.
    pub(crate) fn checked(self) -> Result<Self, String> {
        if self.data == "-" && self.key.is_some() {
            return Err(
                "--key: with one key for all lines only the first would be published; it goes with DATA, not with -"
                    .to_owned(),
            );
        }
        Ok(self)
    }
}

/// Publishes; the first refusal ends the command.
pub(crate) async fn publish(options: PublishOptions) -> ExitCode {
    finish("pub", run(&options).await)
}

async fn run(options: &PublishOptions) -> Result<(), Failure> {
    let gateway = Gateway::new(&options.gateway)?;
    let mut client = HttpClient::new(&gateway, TIME_LIMIT);
    if options.data != "-" {
        check_json(&options.data).map_err(Failure::data)?;
        return send(options, &gateway, &mut client, options.data.clone()).await;
    }
    for number in 1_u64.. {
        let wrong = |why: String| Failure::data(format_args!("line {number}: {why}"));
        // Standard input blocks: on a thread of its own it does not keep the connection from being served.
        let line = tokio::task::spawn_blocking(next_line).await.map_err(Failure::data)?;
        match line.map_err(wrong)? {
            None => break,
            Some(text) if text.trim().is_empty() => {}
            Some(text) => {
                check_json(&text).map_err(wrong)?;
                send(options, &gateway, &mut client, text).await?;
            }
        }
    }
    Ok(())
}

/// The next line of standard input, or `None` at its end.
fn next_line() -> Result<Option<String>, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut text).map_err(|error| error.to_string())?;
    if read as u64 == LINE_BYTES_MAX {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    Ok((read > 0).then_some(text))
}

/// Refuses text that is not JSON, and shows it as a JSON string.
fn check_json(data: &str) -> Result<(), String> {
    let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(data) else { return Ok(()) };
    let quoted = serde_json::to_string(data.trim()).unwrap_or_default();
    Err(format!("not JSON ({error}); plain text is written as a JSON string: '{quoted}'"))
}

async fn send(
    options: &PublishOptions,
    gateway: &Gateway,
    client: &mut HttpClient<'_>,
    data: String,
) -> Result<(), Failure> {
    let mut target = format!("/v1/rooms/{}", percent_encoded(&options.room));
    if let Some(event) = &options.event {
        target = format!("{target}?event={}", percent_encoded(event));
    }
    let key = options.key.clone().map_or_else(random_key, Ok)?;
    let request = gateway.request(Method::POST, &target);
    let request = request.header(CONTENT_TYPE, "application/json").header("idempotency-key", key);
    let response = client.send(request.body(Full::from(data)).map_err(Failure::refused)?).await?;
    if response.status() != StatusCode::OK {
        return Err(Failure::refused(refusal(&response)));
    }
    print(String::from_utf8_lossy(response.body()).trim())
}

/// 128 random bits, so that no two messages share a key.
fn random_key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::refused(format_args!("no randomness: {error}")))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_json_is_refused_with_what_to_write_instead() {
        assert_eq!(check_json(" {\"a\":1.0} "), Ok(()));
        let why = check_json("hello\n").unwrap_err();
        assert!(why.ends_with("JSON string: '\"hello\"'"), "{why}");
    }
}
