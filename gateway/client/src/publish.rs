//! `fanfare pub`: publishes over HTTP and prints where each message stands. Every message carries an idempotency key, so
//! that a request whose connection broke can be sent again without publishing twice. It never changes the data.

use super::{
    EXIT_DATA, Failure, Token, finish,
    http::Http,
    print,
    server::{Server, percent_encoded},
};
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use std::{
    io::{BufRead as _, BufReader, Read as _, Stdin},
    process::ExitCode,
    time::Duration,
};

/// The gateway answers within a second also while its backplane is away; the rest is the network's.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line of standard input: the largest message that any configuration allows, with room for white space.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// What to publish.
#[derive(Debug)]
pub(crate) struct Publish {
    /// Where.
    pub(crate) room: String,
    /// JSON, or `-` for the lines of standard input.
    pub(crate) data: String,
    /// The event's name.
    pub(crate) event: Option<String>,
    /// The idempotency key; without one each message gets a key of its own.
    pub(crate) key: Option<String>,
    /// The gateway.
    pub(crate) url: String,
    /// Who publishes.
    pub(crate) token: Option<Token>,
}

/// Publishes; the first refusal ends it.
pub(crate) async fn publish(order: Publish) -> ExitCode {
    finish("pub", run(order).await)
}

async fn run(order: Publish) -> Result<(), Failure> {
    let server = Server::parse(&order.url)?;
    let mut target = server.path(&format!("/v1/rooms/{}", percent_encoded(&order.room)));
    if let Some(event) = &order.event {
        target = format!("{target}?event={}", percent_encoded(event));
    }
    let mut http = Http::new(server, PATIENCE);
    if order.data != "-" {
        checked(&order.data)?;
        return send(&mut http, &order, &target, order.data.clone()).await;
    }
    let mut lines = Some(BufReader::new(std::io::stdin()));
    for number in 1_u64.. {
        let Some(reader) = lines.take() else { break };
        // Standard input blocks; on a thread of its own it does not keep the connection from being served.
        let read = tokio::task::spawn_blocking(move || line(reader)).await;
        let read = read.map_err(|error| Failure::new(EXIT_DATA, error))?;
        let Some((text, reader)) = read.map_err(|why| Failure::new(EXIT_DATA, format_args!("line {number}: {why}")))?
        else {
            break;
        };
        lines = Some(reader);
        if !text.trim().is_empty() {
            checked(&text)
                .map_err(|failure| Failure { text: format!("line {number}: {}", failure.text), ..failure })?;
            send(&mut http, &order, &target, text).await?;
        }
    }
    Ok(())
}

/// The next line, or `None` at the end.
fn line(mut reader: BufReader<Stdin>) -> Result<Option<(String, BufReader<Stdin>)>, String> {
    let mut text = String::new();
    let read = reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut text).map_err(|error| error.to_string())?;
    if read as u64 == LINE_BYTES_MAX {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    Ok((read > 0).then_some((text, reader)))
}

/// Refuses what is not JSON, with what was probably meant.
fn checked(data: &str) -> Result<(), Failure> {
    let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(data) else { return Ok(()) };
    let quoted = serde_json::to_string(data.trim()).unwrap_or_default();
    let text = format!("not JSON ({error}); a plain text is written as a JSON string: '{quoted}'");
    Err(Failure::new(EXIT_DATA, text))
}

async fn send(http: &mut Http, order: &Publish, target: &str, data: String) -> Result<(), Failure> {
    let key = match &order.key {
        Some(key) => key.clone(),
        None => random_key()?,
    };
    let mut request = Request::post(target).header(CONTENT_TYPE, "application/json").header("idempotency-key", key);
    if let Some(token) = &order.token {
        request = request.header(AUTHORIZATION, token.header()?);
    }
    let request = request.body(Full::from(data)).map_err(Failure::refused)?;
    let answer = http.send(request).await?;
    if answer.status != StatusCode::OK {
        return Err(Failure::refused(answer.refusal()));
    }
    print(String::from_utf8_lossy(&answer.body).trim())
        .map_err(|error| Failure::refused(format_args!("output: {error}")))
}

/// 128 random bits: no two messages share them.
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
        assert_eq!(checked(" {\"a\":1.0} "), Ok(()));
        let failure = checked("hello\n").unwrap_err();
        assert_eq!(failure.code, EXIT_DATA);
        assert!(failure.text.ends_with("JSON string: '\"hello\"'"), "{}", failure.text);
    }
}
