//! A connection over any transport that delivers texts as they arrive, light enough for a thousand in a process. Called
//! by `member` and by `client`. It never reconnects and sets no deadline.

use std::net::SocketAddr;
use std::time::Duration;

use super::ended::Ended;
use super::kind::Transport;
use super::ndjson::NdjsonStream;
use super::poller::Poller;
use super::request::RoomRequest;
use super::sse::EventStream;
use super::websocket::{Incoming, WebSocket};
use crate::http::Refused;

/// A connection over one of the transports.
#[derive(Debug)]
pub enum Connection {
    /// A WebSocket.
    WebSocket(Box<WebSocket>),
    /// An event stream, with what its `close` event has announced.
    Sse(Box<EventStream>, Ended),
    /// A stream of lines, with what its `close` frame has announced.
    Stream(Box<NdjsonStream>, Ended),
    /// Long or short polling.
    Poller(Box<Poller>),
}

/// What a connection receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of the protocol.
    Text(String),
    /// A sign of life: a ping, a comment or an empty poll.
    KeepAlive,
    /// The end of the connection.
    Ended(Ended),
}

impl Connection {
    /// Opens a connection. For a poller, it has sent its first poll.
    ///
    /// # Errors
    /// If the server refuses it.
    pub async fn open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Result<Self, Refused> {
        let path = request.path(transport, request.since.as_deref());
        Ok(match transport {
            Transport::WebSocket => Self::WebSocket(Box::new(WebSocket::open(address, &path, &[]).await?)),
            Transport::Sse => Self::Sse(Box::new(EventStream::open(address, &path, &[]).await?), Ended::default()),
            Transport::Stream => {
                Self::Stream(Box::new(NdjsonStream::open(address, &path, &[]).await?), Ended::default())
            }
            Transport::LongPoll | Transport::ShortPoll => {
                Self::Poller(Box::new(Poller::open(address, transport, request).await?))
            }
        })
    }

    /// Waits for what comes next without a deadline. May be cancelled and called again.
    pub async fn next(&mut self) -> Received {
        match self {
            Self::WebSocket(socket) => match socket.next().await {
                Incoming::Text(text) => Received::Text(text.to_string()),
                Incoming::Ping | Incoming::Pong => Received::KeepAlive,
                Incoming::Ended(ended) => Received::Ended(ended),
            },
            Self::Sse(stream, announced) => next_event(stream, announced).await,
            Self::Stream(stream, announced) => match stream.next().await {
                Ok(Some(line)) if line.starts_with(PING) => Received::KeepAlive,
                Ok(Some(line)) => {
                    if line.starts_with(CLOSE) {
                        *announced = Ended::announced(&line);
                    }
                    Received::Text(line)
                }
                end => Received::Ended(Ended { reason: end.err().unwrap_or_default(), ..announced.clone() }),
            },
            Self::Poller(poller) => match poller.next().await {
                Ok(Some(text)) => Received::Text(text),
                Ok(None) => Received::KeepAlive,
                Err(ended) => Received::Ended(ended),
            },
        }
    }

    /// The cursor of all rooms of the request after the last text, if the transport itself states one.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        match self {
            Self::Sse(stream, _) => Some(stream.id.as_str()).filter(|id| !id.is_empty()),
            Self::Poller(poller) => poller.cursor(),
            Self::WebSocket(_) | Self::Stream(..) => None,
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        match self {
            Self::WebSocket(socket) => socket.reset(),
            Self::Sse(stream, _) => stream.reset(),
            Self::Stream(stream, _) => stream.reset(),
            Self::Poller(poller) => poller.reset(),
        }
    }
}

const CLOSE: &str = r#"{"type":"close""#;
const PING: &str = r#"{"type":"ping""#;

async fn next_event(stream: &mut EventStream, announced: &mut Ended) -> Received {
    match stream.next().await {
        Ok(Some(block)) => {
            let Some(event) = block.event else { return Received::KeepAlive };
            // The data repeat the name of the event, so the stream can be read like any other.
            let start = format!(r#"{{"type":"{}""#, event.kind);
            assert!(event.data.starts_with(&start), "an event {} carries another frame: {}", event.kind, event.data);
            if event.data.starts_with(CLOSE) {
                *announced = Ended::announced(&event.data);
            }
            Received::Text(event.data)
        }
        end => {
            let reconnect_after = announced.reconnect_after.or(stream.retry_ms.map(Duration::from_millis));
            Received::Ended(Ended { reconnect_after, reason: end.err().unwrap_or_default(), ..announced.clone() })
        }
    }
}
