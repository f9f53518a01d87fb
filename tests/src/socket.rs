//! One WebSocket as a client holds it, light enough for ten thousand in a process: small buffers, text as it came.
//! Called by `client`, `member` and the fault runs; it knows nothing of the protocol and never reconnects.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use crate::wait::within;

/// The library's own 128 KiB each would be 1.3 GB for ten thousand.
const READ_BUFFER: usize = 4 << 10;

/// How a connection ended. No code: the peer went away without a close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The close code.
    pub code: Option<u16>,
    /// The reason beside it, or the fault.
    pub reason: String,
}

/// A refused upgrade.
#[derive(Debug)]
pub enum Refused {
    /// The server answered with a status.
    Status(u16),
    /// No answer.
    Network(String),
}

/// What comes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A text frame.
    Text(Utf8Bytes),
    /// The server's ping, answered already.
    Ping,
    /// The answer to a ping of ours.
    Pong,
    /// The end.
    Closed(Closed),
}

/// One connection.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    closed: Option<Closed>,
}

impl Socket {
    /// A connection on which nothing has been read yet.
    ///
    /// # Errors
    /// When the upgrade is refused.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let request = request(address, path, headers).map_err(network)?;
        let stream = TcpStream::connect(address).await.map_err(network)?;
        stream.set_nodelay(true).map_err(network)?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).write_buffer_size(0);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream, closed: None }),
            Err(Error::Http(response)) => Err(Refused::Status(response.status().as_u16())),
            Err(error) => Err(network(error)),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the connection has gone.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        within("the connection takes a frame", self.stream.send(message)).await
    }

    /// Begins the close handshake.
    ///
    /// # Errors
    /// When the connection has gone.
    pub async fn close(&mut self) -> Result<(), Error> {
        within("the close handshake begins", self.stream.close(None)).await
    }

    /// What comes next, without a deadline; after the end, the end again.
    pub async fn next(&mut self) -> Incoming {
        if let Some(closed) = &self.closed {
            return Incoming::Closed(closed.clone());
        }
        let closed = match self.stream.next().await {
            Some(Ok(Message::Text(text))) => return Incoming::Text(text),
            Some(Ok(Message::Pong(_))) => return Incoming::Pong,
            Some(Ok(Message::Close(Some(frame)))) => {
                // The handshake is finished by reading on, which also sends our half.
                while let Some(Ok(_)) = self.stream.next().await {}
                Closed { code: Some(frame.code.into()), reason: frame.reason.to_string() }
            }
            Some(Ok(Message::Close(None))) | None => Closed { code: None, reason: String::new() },
            Some(Ok(_)) => return Incoming::Ping,
            Some(Err(error)) => Closed { code: None, reason: error.to_string() },
        };
        // A good client gives its socket back; a server need not wait for one that has.
        let _ = self.stream.get_mut().shutdown().await;
        self.closed = Some(closed.clone());
        Incoming::Closed(closed)
    }

    /// Ends the connection with a RST: no close frame, no FIN.
    pub fn reset(self) {
        let _ = self.stream.get_ref().set_zero_linger();
    }
}

fn request(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Request, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    for (name, value) in headers {
        let name = name.parse::<hyper::header::HeaderName>().map_err(|_| Error::AttackAttempt)?;
        let value = value.parse().map_err(|_| Error::AttackAttempt)?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

fn network(error: impl std::fmt::Display) -> Refused {
    Refused::Network(error.to_string())
}
