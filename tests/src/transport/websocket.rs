//! One WebSocket as a client holds it, with small buffers, so that a process can hold ten thousand. Called by
//! `connection`, `member` and the fault runs. It knows nothing about the protocol and never reconnects.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use hyper::HeaderMap;
use hyper::header::HeaderName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::ended::Ended;
use crate::http::{Refused, Reply};
use crate::wait::within;

/// The library's default of 128 KiB would be 1.3 GB for ten thousand connections.
const READ_BUFFER: usize = 4 << 10;

/// What a WebSocket receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A text frame.
    Text(Utf8Bytes),
    /// A ping of the server, which has been answered.
    Ping,
    /// The answer to a ping of the client.
    Pong,
    /// The end of the connection.
    Ended(Ended),
}

/// One WebSocket connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: WebSocketStream<TcpStream>,
    ended: Option<Ended>,
}

impl WebSocket {
    /// Opens a connection and reads no frame.
    ///
    /// # Errors
    /// If the upgrade is refused.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let request = request(address, path, headers).map_err(Refused::network)?;
        let stream = TcpStream::connect(address).await.map_err(Refused::network)?;
        stream.set_nodelay(true).map_err(Refused::network)?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).write_buffer_size(0);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream, ended: None }),
            Err(Error::Http(response)) => {
                let status = response.status().as_u16();
                Err(Refused::Reply(Box::new(Reply { status, headers: HeaderMap::new(), text: String::new() })))
            }
            Err(error) => Err(Refused::network(error)),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        within("the connection takes a frame", self.stream.send(message)).await
    }

    /// Begins the close handshake.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn close(&mut self) -> Result<(), Error> {
        within("the close handshake begins", self.stream.close(None)).await
    }

    /// Waits for the next message without a deadline; after the end it returns the end again.
    pub async fn next(&mut self) -> Incoming {
        if let Some(ended) = &self.ended {
            return Incoming::Ended(ended.clone());
        }
        let ended = match self.stream.next().await {
            Some(Ok(Message::Text(text))) => return Incoming::Text(text),
            Some(Ok(Message::Pong(_))) => return Incoming::Pong,
            Some(Ok(Message::Close(Some(frame)))) => {
                // Reading on finishes the handshake, because it also sends the client's close frame.
                while let Some(Ok(_)) = self.stream.next().await {}
                Ended { code: Some(frame.code.into()), reason: frame.reason.to_string(), ..Ended::default() }
            }
            Some(Ok(Message::Close(None))) | None => Ended::default(),
            Some(Ok(_)) => return Incoming::Ping,
            Some(Err(error)) => Ended::network(error),
        };
        // The client closes its half as well, so that the server need not wait for it.
        let _ = self.stream.get_mut().shutdown().await;
        self.ended = Some(ended.clone());
        Incoming::Ended(ended)
    }

    /// Reads up to the end of the connection without looking at what comes, for one of thousands of clients. It answers no
    /// ping.
    pub async fn discard(&mut self) {
        let _ = tokio::io::copy(self.stream.get_mut(), &mut tokio::io::sink()).await;
    }

    /// Ends the connection with a RST: no close frame, no FIN.
    pub fn reset(self) {
        let _ = self.stream.get_ref().set_zero_linger();
    }
}

fn request(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Request, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    for (name, value) in headers {
        let name = name.parse::<HeaderName>().map_err(|_| Error::AttackAttempt)?;
        let value = value.parse().map_err(|_| Error::AttackAttempt)?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}
