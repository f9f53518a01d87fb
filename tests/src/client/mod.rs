//! A WebSocket client that speaks the protocol in JSON values and keeps every frame's own bytes. Called by the tests
//! and by `member` and `load`; it never reconnects by itself and never drops a frame: what is not asked for yet waits.
//! This file is the connection; `commands` is what is said over it.

mod commands;

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde_json::Value;
use tokio_tungstenite::tungstenite::{Error, Message};

pub use crate::socket::{Closed, Refused};
use crate::socket::{Incoming, Socket};
use crate::wait::within;

/// A text frame as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its bytes.
    pub text: String,
    /// The same, parsed.
    pub json: Value,
}

/// What comes next on a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A text frame.
    Frame(Frame),
    /// The end.
    Closed(Closed),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    stash: VecDeque<Frame>,
    next_id: u64,
    /// The first frame.
    pub welcome: Value,
}

impl Frame {
    /// Its `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.json["type"].as_str().unwrap_or_default()
    }
}

impl Client {
    /// A connection to `/ws` with its `welcome` read.
    ///
    /// # Panics
    /// When there is no welcome in time.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::open(address, "/ws").await
    }

    /// A connection to a path with its `welcome` read.
    ///
    /// # Panics
    /// When there is no welcome in time.
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        within("welcome", Self::try_open(address, path, &[]))
            .await
            .unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    /// A connection to a path with headers of the caller's, with its `welcome` read.
    ///
    /// # Errors
    /// When the upgrade is refused, or no welcome comes.
    pub async fn try_open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let mut client = Self::without_welcome(address, path, headers).await?;
        match client.event().await {
            Event::Frame(frame) if frame.kind() == "welcome" => client.welcome = frame.json,
            other => return Err(Refused::Network(format!("in place of welcome: {other:?}"))),
        }
        Ok(client)
    }

    /// A connection on which nothing has been read yet.
    ///
    /// # Errors
    /// When the upgrade is refused.
    pub async fn without_welcome(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let socket = Socket::open(address, path, headers).await?;
        Ok(Self { socket, stash: VecDeque::new(), next_id: 1, welcome: Value::Null })
    }

    /// The public id of this session: what stands in `from`.
    ///
    /// # Panics
    /// When `welcome` had none.
    #[must_use]
    pub fn session(&self) -> String {
        self.welcome["session"].as_str().expect("welcome has a session").to_owned()
    }

    /// The node it landed on.
    ///
    /// # Panics
    /// When `welcome` had none.
    #[must_use]
    pub fn node(&self) -> String {
        self.welcome["node"].as_str().expect("welcome has a node").to_owned()
    }

    // Out.

    /// Sends a frame.
    ///
    /// # Panics
    /// When the connection has gone.
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends bytes of the caller's as a text frame.
    ///
    /// # Panics
    /// When the connection has gone.
    pub async fn send_text(&mut self, text: &str) {
        self.try_send(Message::text(text)).await.expect("the connection takes a frame");
    }

    /// Sends any kind of message; for tests of what is not the protocol, and for who lives with a closed connection.
    ///
    /// # Errors
    /// When the connection has gone.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }

    // In.

    /// The next frame.
    ///
    /// # Panics
    /// When none comes in time, or the connection ends.
    pub async fn next(&mut self) -> Frame {
        self.find("the next frame", |_| true).await
    }

    /// The next frame of a type; frames of other types stay for later.
    ///
    /// # Panics
    /// When none comes in time, or the connection ends.
    pub async fn take(&mut self, kind: &str) -> Frame {
        self.find(kind, |frame| frame.kind() == kind).await
    }

    /// The next `message`.
    ///
    /// # Panics
    /// When none comes in time, or the connection ends.
    pub async fn message(&mut self) -> Value {
        self.take("message").await.json
    }

    /// Reads to the end and says how it ended; frames that came before it stay for later.
    ///
    /// # Panics
    /// When the connection stays open.
    pub async fn closed(&mut self) -> Closed {
        loop {
            match within("the close", self.event_from_socket()).await {
                Event::Frame(frame) => self.stash.push_back(frame),
                Event::Closed(closed) => return closed,
            }
        }
    }

    /// What comes next, without a deadline: for members that only listen.
    pub async fn event(&mut self) -> Event {
        match self.stash.pop_front() {
            Some(frame) => Event::Frame(frame),
            None => self.event_from_socket().await,
        }
    }

    /// Closes from this side and waits for the server's answer.
    ///
    /// # Panics
    /// When it does not come in time.
    pub async fn close(mut self) {
        self.socket.close().await.expect("a close can be sent");
        self.closed().await;
    }

    async fn find(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(place) = self.stash.iter().position(&wanted) {
            return self.stash.remove(place).expect("the place was just found");
        }
        let search = async {
            loop {
                match self.event_from_socket().await {
                    Event::Frame(frame) if wanted(&frame) => return Ok(frame),
                    Event::Frame(frame) => self.stash.push_back(frame),
                    Event::Closed(closed) => return Err(closed),
                }
            }
        };
        let found = tokio::time::timeout(crate::wait::patience(), search).await;
        match found {
            Ok(Ok(frame)) => frame,
            Ok(Err(closed)) => panic!("waiting for {what}: {closed:?}; before it came {:?}", self.stash),
            Err(_) => panic!("waited in vain for {what}; what came: {:?}", self.stash),
        }
    }

    async fn event_from_socket(&mut self) -> Event {
        loop {
            match self.socket.next().await {
                Incoming::Text(text) => {
                    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    return Event::Frame(Frame { text: text.to_string(), json });
                }
                Incoming::Ping | Incoming::Pong => {}
                Incoming::Closed(closed) => return Event::Closed(closed),
            }
        }
    }
}
