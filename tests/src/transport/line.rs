//! A client of any carrier, light enough for a thousand in a process: texts as they come, without a look into them.
//! Called by `member` and by `tap`; it never reconnects and never waits with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::lines::{self, Lines};
use super::polling::Polling;
use super::sse::{self, Events};
use super::{Ask, Carrier, Refused};
use crate::http::Reply;
use crate::socket::{Incoming, Socket};

/// A client that listens.
#[derive(Debug)]
pub enum Line {
    /// See `socket`.
    WebSocket(Box<Socket>),
    /// See `sse`.
    Sse(Box<Events>),
    /// See `lines`; with what its last frame said about its end.
    Stream(Box<Lines>, Ended),
    /// See `polling`.
    Polling(Box<Polling>),
}

/// What it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A frame of the protocol.
    Text(String),
    /// A sign of life.
    Beat,
    /// The end.
    Ended(Ended),
}

/// How a line ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The close code, or the status of a poll that was refused.
    pub code: Option<u16>,
    /// Whether to come back, where that was said.
    pub reconnect: Option<bool>,
    /// When to come back, where that was said.
    pub after: Option<Duration>,
    /// What was wrong about the end, or the text beside the code.
    pub why: String,
}

/// The last frame of the one-way transports.
#[derive(Deserialize)]
struct Close {
    code: u16,
    reconnect: bool,
    after_ms: Option<u64>,
}

impl Ended {
    pub(super) fn network(error: impl std::fmt::Display) -> Self {
        Self { why: error.to_string(), ..Self::default() }
    }

    pub(super) fn refused(reply: &Reply) -> Self {
        let after = reply.header("retry-after").parse().ok().map(Duration::from_secs);
        Self { code: Some(reply.status), reconnect: Some(after.is_some()), after, why: reply.text.clone() }
    }

    /// Reads the frame that says how it ends.
    fn said(text: &str) -> Self {
        let close: Close = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let after = close.after_ms.map(Duration::from_millis);
        Self { code: Some(close.code), reconnect: Some(close.reconnect), after, why: String::new() }
    }
}

impl Carrier {
    /// Its media type.
    pub(super) fn accepts(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Stream => "application/x-ndjson",
            Self::WebSocket | Self::LongPoll | Self::ShortPoll => "application/json",
        }
    }
}

impl Line {
    /// Opens one; on a poll's the first poll is under way then.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn open(address: SocketAddr, carrier: Carrier, ask: &Ask) -> Result<Self, Refused> {
        let target = ask.target(carrier, ask.since.as_deref());
        match carrier {
            Carrier::WebSocket => {
                Ok(Socket::open(address, &target, &[]).await.map(|socket| Self::WebSocket(Box::new(socket)))?)
            }
            Carrier::Sse => Events::open(address, &target, &[]).await.map(|events| Self::Sse(Box::new(events))),
            Carrier::Stream => {
                Lines::open(address, &target, &[]).await.map(|lines| Self::Stream(Box::new(lines), Ended::default()))
            }
            Carrier::LongPoll | Carrier::ShortPoll => {
                Polling::open(address, carrier, ask).await.map(|polling| Self::Polling(Box::new(polling)))
            }
        }
    }

    /// What comes next, without a deadline; may be given up and begun again.
    pub async fn next(&mut self) -> Heard {
        match self {
            Self::WebSocket(socket) => match socket.next().await {
                Incoming::Text(text) => Heard::Text(text.to_string()),
                Incoming::Ping | Incoming::Pong => Heard::Beat,
                Incoming::Closed(closed) => {
                    Heard::Ended(Ended { code: closed.code, why: closed.reason, ..Ended::default() })
                }
            },
            Self::Sse(events) => next_event(events).await,
            Self::Stream(lines, ended) => match lines.next().await {
                lines::Next::Line(text) if text.starts_with(r#"{"type":"ping""#) => Heard::Beat,
                lines::Next::Line(text) => {
                    if text.starts_with(CLOSE) {
                        *ended = Ended::said(&text);
                    }
                    Heard::Text(text)
                }
                lines::Next::End(why) => Heard::Ended(Ended { why: why.unwrap_or_default(), ..ended.clone() }),
            },
            Self::Polling(polling) => match polling.next().await {
                Ok(Some(text)) => Heard::Text(text),
                Ok(None) => Heard::Beat,
                Err(ended) => Heard::Ended(ended),
            },
        }
    }

    /// The place after what it has heard, where the carrier itself says so for all its rooms.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        match self {
            Self::Sse(events) => Some(events.id.as_str()).filter(|id| !id.is_empty()),
            Self::Polling(polling) => polling.cursor(),
            Self::WebSocket(_) | Self::Stream(..) => None,
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        match self {
            Self::WebSocket(socket) => socket.reset(),
            Self::Sse(events) => events.reset(),
            Self::Stream(lines, _) => lines.reset(),
            Self::Polling(polling) => polling.reset(),
        }
    }
}

const CLOSE: &str = r#"{"type":"close""#;

async fn next_event(events: &mut Events) -> Heard {
    match events.next().await {
        sse::Next::Block(block) => {
            let Some(event) = block.event else { return Heard::Beat };
            // What is named by the event is named the same in its data: the stream can be read as any other.
            let named = if event.kind == "message" { "message" } else { event.kind.as_str() };
            let begins = format!(r#"{{"type":"{named}""#);
            assert!(event.data.starts_with(&begins), "an event {named} carries another frame: {}", event.data);
            if event.kind == "close" {
                events.close = Some(Ended::said(&event.data));
            }
            Heard::Text(event.data)
        }
        sse::Next::End(why) => {
            let said = events.close.clone().unwrap_or_default();
            let after = said.after.or(events.retry_ms.map(Duration::from_millis));
            Heard::Ended(Ended { after, why: why.unwrap_or_default(), ..said })
        }
    }
}
