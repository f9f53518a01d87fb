//! A client of any transport, light enough for a thousand in a process: texts as they come, without a look into them.
//! Called by `member` and by `client`; it never reconnects and never waits with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::ndjson::{self, NdjsonStream};
use super::poller::Poller;
use super::sse::{self, EventStream};
use super::{Refused, RoomRequest, Transport};
use crate::http::Reply;
use crate::socket::{Incoming, Socket};

/// A client that listens.
#[derive(Debug)]
pub enum Connection {
    /// See `socket`.
    WebSocket(Box<Socket>),
    /// See `sse`.
    Sse(Box<EventStream>),
    /// See `lines`; with what its last frame said about its end.
    Stream(Box<NdjsonStream>, Ended),
    /// See `polling`.
    Poller(Box<Poller>),
}

/// What it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of the protocol.
    Text(String),
    /// A sign of life.
    KeepAlive,
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

impl Transport {
    /// Its media type.
    pub(super) fn accepts(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Stream => "application/x-ndjson",
            Self::WebSocket | Self::LongPoll | Self::ShortPoll => "application/json",
        }
    }
}

impl Connection {
    /// Opens one; on a poll's the first poll is under way then.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Result<Self, Refused> {
        let path = request.path(transport, request.since.as_deref());
        match transport {
            Transport::WebSocket => {
                Ok(Socket::open(address, &path, &[]).await.map(|socket| Self::WebSocket(Box::new(socket)))?)
            }
            Transport::Sse => EventStream::open(address, &path, &[]).await.map(|events| Self::Sse(Box::new(events))),
            Transport::Stream => NdjsonStream::open(address, &path, &[])
                .await
                .map(|lines| Self::Stream(Box::new(lines), Ended::default())),
            Transport::LongPoll | Transport::ShortPoll => {
                Poller::open(address, transport, request).await.map(|poller| Self::Poller(Box::new(poller)))
            }
        }
    }

    /// What comes next, without a deadline; may be given up and begun again.
    pub async fn next(&mut self) -> Received {
        match self {
            Self::WebSocket(socket) => match socket.next().await {
                Incoming::Text(text) => Received::Text(text.to_string()),
                Incoming::Ping | Incoming::Pong => Received::KeepAlive,
                Incoming::Closed(closed) => {
                    Received::Ended(Ended { code: closed.code, why: closed.reason, ..Ended::default() })
                }
            },
            Self::Sse(events) => next_event(events).await,
            Self::Stream(lines, ended) => match lines.next().await {
                ndjson::Next::Line(text) if text.starts_with(r#"{"type":"ping""#) => Received::KeepAlive,
                ndjson::Next::Line(text) => {
                    if text.starts_with(CLOSE) {
                        *ended = Ended::said(&text);
                    }
                    Received::Text(text)
                }
                ndjson::Next::End(why) => Received::Ended(Ended { why: why.unwrap_or_default(), ..ended.clone() }),
            },
            Self::Poller(poller) => match poller.next().await {
                Ok(Some(text)) => Received::Text(text),
                Ok(None) => Received::KeepAlive,
                Err(ended) => Received::Ended(ended),
            },
        }
    }

    /// The place after what it has heard, where the transport itself says so for all its rooms.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        match self {
            Self::Sse(events) => Some(events.id.as_str()).filter(|id| !id.is_empty()),
            Self::Poller(poller) => poller.cursor(),
            Self::WebSocket(_) | Self::Stream(..) => None,
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        match self {
            Self::WebSocket(socket) => socket.reset(),
            Self::Sse(events) => events.reset(),
            Self::Stream(lines, _) => lines.reset(),
            Self::Poller(poller) => poller.reset(),
        }
    }
}

const CLOSE: &str = r#"{"type":"close""#;

async fn next_event(events: &mut EventStream) -> Received {
    match events.next().await {
        sse::Next::Block(block) => {
            let Some(event) = block.event else { return Received::KeepAlive };
            // What is named by the event is named the same in its data: the stream can be read as any other.
            let named = if event.kind == "message" { "message" } else { event.kind.as_str() };
            let begins = format!(r#"{{"type":"{named}""#);
            assert!(event.data.starts_with(&begins), "an event {named} carries another frame: {}", event.data);
            if event.kind == "close" {
                events.close = Some(Ended::said(&event.data));
            }
            Received::Text(event.data)
        }
        sse::Next::End(why) => {
            let said = events.close.clone().unwrap_or_default();
            let after = said.after.or(events.retry_ms.map(Duration::from_millis));
            Received::Ended(Ended { after, why: why.unwrap_or_default(), ..said })
        }
    }
}
