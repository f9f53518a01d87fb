//! A WebSocket client whose methods are the commands of the protocol: each sends one and returns its reply. Called by
//! the tests and by `load`. It receives frames as a [`TransportClient`], which it wraps; it never reconnects by itself.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::http::Refused;
use crate::transport::websocket::WebSocket;
use crate::transport::{Connection, Frame, Transport, TransportClient};
use crate::wait::within;

/// A connected WebSocket client.
#[derive(Debug)]
pub struct Client(TransportClient);

impl Deref for Client {
    type Target = TransportClient;

    fn deref(&self) -> &TransportClient {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut TransportClient {
        &mut self.0
    }
}

impl Client {
    /// Connects to `/ws` and reads `welcome`.
    ///
    /// # Panics
    /// If no `welcome` comes in time.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::open(address, "/ws").await
    }

    /// Connects to a path and reads `welcome`.
    ///
    /// # Panics
    /// If no `welcome` comes in time.
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        let opened = within("welcome", Self::try_open(address, path, &[])).await;
        opened.unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    /// Connects to a path with additional headers and reads `welcome`.
    ///
    /// # Errors
    /// If the upgrade is refused, or the connection ends before `welcome`.
    pub async fn try_open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let connection = Connection::WebSocket(Box::new(WebSocket::open(address, path, headers).await?));
        TransportClient::over(connection, address, Transport::WebSocket, Vec::new()).await.map(Self)
    }

    /// The name of the node to which it is connected.
    ///
    /// # Panics
    /// If `welcome` did not contain it.
    #[must_use]
    pub fn node(&self) -> String {
        self.welcome["node"].as_str().expect("welcome has a node").to_owned()
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the connection has ended.
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends the given bytes as a text frame.
    ///
    /// # Panics
    /// If the connection has ended.
    pub async fn send_text(&mut self, text: &str) {
        self.try_send(Message::text(text)).await.expect("the connection takes a frame");
    }

    /// Sends a WebSocket message of any kind, also to a connection that may have ended.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.websocket().send(message).await
    }

    /// Closes the connection and waits until the server has closed it too.
    ///
    /// # Panics
    /// If the server does not close it in time.
    pub async fn close(mut self) {
        self.websocket().close().await.expect("a close can be sent");
        self.ended().await;
    }

    /// Joins a room and returns `joined`.
    ///
    /// # Panics
    /// If the reply is another one.
    pub async fn join(&mut self, room: &str) -> Value {
        self.join_with(json!({"room": room})).await
    }

    /// Joins with more fields beside `room` and returns `joined`.
    ///
    /// # Panics
    /// If the reply is another one.
    pub async fn join_with(&mut self, fields: Value) -> Value {
        self.expect("join", "joined", fields).await
    }

    /// Leaves a room and returns `left`.
    ///
    /// # Panics
    /// If the reply is another one.
    pub async fn leave(&mut self, room: &str) -> Value {
        self.expect("leave", "left", json!({"room": room})).await
    }

    /// Publishes and returns `published`.
    ///
    /// # Panics
    /// If the reply is another one.
    pub async fn publish(&mut self, room: &str, data: Value) -> Value {
        self.publish_with(json!({"room": room, "data": data})).await
    }

    /// Publishes with more fields and returns `published`.
    ///
    /// # Panics
    /// If the reply is another one.
    pub async fn publish_with(&mut self, fields: Value) -> Value {
        self.expect("publish", "published", fields).await
    }

    async fn expect(&mut self, command: &str, expected: &str, mut fields: Value) -> Value {
        fields["type"] = json!(command);
        let reply = self.ask(fields).await;
        assert_eq!(reply["type"], expected, "{reply}");
        reply
    }

    /// Sends a command that must be refused and returns the code of the error.
    ///
    /// # Panics
    /// If it is not refused.
    pub async fn refused(&mut self, command: Value) -> String {
        let reply = self.ask(command).await;
        assert_eq!(reply["type"], "error", "{reply}");
        reply["code"].as_str().expect("an error has a code").to_owned()
    }

    /// All frames that come before the reply to a ping: what the server had queued for this session.
    ///
    /// # Panics
    /// If no reply comes in time.
    pub async fn so_far(&mut self) -> Vec<Frame> {
        self.ask(json!({"type": "ping"})).await;
        self.received()
    }
}
