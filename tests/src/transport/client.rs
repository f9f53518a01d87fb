//! The client that tests use over any transport: it parses frames and keeps their bytes, knows the cursor that it has
//! reached, sends commands, and waits with a deadline. Called by the tests and the fault runs. A frame that comes while
//! another is awaited stays for a later call. It never reconnects by itself.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::connection::{Connection, Received};
use super::ended::Ended;
use super::kind::Transport;
use super::poller::Poller;
use super::request::RoomRequest;
use super::websocket::WebSocket;
use crate::http::{self, Refused, Reply};
use crate::wait::{patience, within};

/// A frame as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its bytes.
    pub text: String,
    /// The same, parsed.
    pub json: Value,
}

/// A client over one of the transports.
#[derive(Debug)]
pub struct TransportClient {
    /// Its transport.
    pub transport: Transport,
    /// The address to which it is connected.
    pub address: SocketAddr,
    /// The first frame; null for polls, which get none.
    pub welcome: Value,
    rooms: Vec<String>,
    connection: Connection,
    /// Frames that came and have not been returned.
    waiting: VecDeque<Frame>,
    /// The cursor of each room after the frames that came, returned or not.
    cursors: HashMap<String, String>,
    next_id: u64,
}

impl Frame {
    /// Its `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.json["type"].as_str().unwrap_or_default()
    }
}

impl TransportClient {
    /// Connects and reads `welcome`.
    ///
    /// # Panics
    /// If the connection is refused, or no `welcome` comes in time.
    pub async fn open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Self {
        let what = format!("a {} to {:?}", transport.name(), request.rooms);
        let opened = within(&what, Self::try_open(address, transport, request)).await;
        opened.unwrap_or_else(|refused| panic!("{} to {request:?}: {refused:?}", transport.name()))
    }

    /// Connects and waits until it has joined every room.
    ///
    /// # Panics
    /// If it does not join in time.
    pub async fn join(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Self {
        let mut client = Self::open(address, transport, request).await;
        for _ in &request.rooms {
            client.take("joined").await;
        }
        client
    }

    /// Connects and reads `welcome`.
    ///
    /// # Errors
    /// If the connection is refused, or ends before `welcome`.
    pub async fn try_open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Result<Self, Refused> {
        let connection = Connection::open(address, transport, request).await?;
        Self::over(connection, address, transport, request.rooms.clone()).await
    }

    /// A client over a connection from which nothing has been read.
    pub(crate) async fn over(
        connection: Connection,
        address: SocketAddr,
        transport: Transport,
        rooms: Vec<String>,
    ) -> Result<Self, Refused> {
        let (waiting, cursors) = (VecDeque::new(), HashMap::new());
        let mut client =
            Self { transport, address, welcome: Value::Null, rooms, connection, waiting, cursors, next_id: 1 };
        if !transport.polls() {
            match client.read().await {
                Ok(frame) if frame.kind() == "welcome" => client.welcome = frame.json,
                other => return Err(Refused::Network(format!("instead of welcome: {other:?}"))),
            }
        }
        Ok(client)
    }

    /// The public id of this session, which messages contain in `from`.
    ///
    /// # Panics
    /// If `welcome` did not contain it.
    #[must_use]
    pub fn session(&self) -> String {
        self.welcome["session"].as_str().expect("welcome has a session").to_owned()
    }

    /// The underlying WebSocket.
    ///
    /// # Panics
    /// If this client has another transport.
    pub fn websocket(&mut self) -> &mut WebSocket {
        match &mut self.connection {
            Connection::WebSocket(socket) => socket,
            other => panic!("not a WebSocket: {other:?}"),
        }
    }

    /// The underlying poller.
    ///
    /// # Panics
    /// If this client does not poll.
    pub fn poller(&mut self) -> &mut Poller {
        match &mut self.connection {
            Connection::Poller(poller) => poller,
            other => panic!("not a poller: {other:?}"),
        }
    }

    /// The cursor with which this client would resume: that of all rooms of the request, in their order, after the last
    /// frame that came.
    #[must_use]
    pub fn cursor(&self) -> String {
        let cursor = |room| self.cursors.get(room).map_or("", String::as_str);
        let stated = self.connection.cursor().map(str::to_owned);
        stated.unwrap_or_else(|| self.rooms.iter().map(cursor).collect::<Vec<_>>().join("~"))
    }

    // Sending.

    /// Sends a command with a new `id` and returns its reply, which may be an error. A WebSocket sends a frame; the other
    /// transports post to the address to which they are connected.
    ///
    /// # Panics
    /// If no reply comes in time.
    pub async fn ask(&mut self, command: Value) -> Value {
        self.ask_at(self.address, command).await
    }

    /// Like [`TransportClient::ask`], but posts to another address.
    ///
    /// # Panics
    /// If no reply comes in time.
    pub async fn ask_at(&mut self, address: SocketAddr, mut command: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        command["id"] = json!(id);
        if let Connection::WebSocket(socket) = &mut self.connection {
            socket.send(Message::text(command.to_string())).await.expect("the connection takes a frame");
            return self.find(&format!("the reply to {command}"), |frame| frame.json["id"] == json!(id)).await.json;
        }
        let reply = self.command(address, &command).await.expect(200);
        assert_eq!(reply["id"], id, "{reply}");
        reply
    }

    /// Posts a command or an array of commands to `welcome.post` at this address.
    ///
    /// # Panics
    /// If `welcome` has no `post`, or no reply comes in time.
    pub async fn command(&self, address: SocketAddr, body: &Value) -> Reply {
        http::post(address, self.post(), body).send().await
    }

    /// The secret path to which commands are posted.
    ///
    /// # Panics
    /// If `welcome` did not contain it.
    #[must_use]
    pub fn post(&self) -> &str {
        self.welcome["post"].as_str().unwrap_or_else(|| panic!("welcome has no post: {}", self.welcome))
    }

    // Receiving.

    /// The next frame.
    ///
    /// # Panics
    /// If none comes in time, or the connection ends.
    pub async fn next(&mut self) -> Frame {
        self.find("the next frame", |_| true).await
    }

    /// The next frame, without a deadline.
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn try_next(&mut self) -> Result<Frame, Ended> {
        match self.waiting.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read().await,
        }
    }

    /// The next frame of a type; frames of other types stay for later.
    ///
    /// # Panics
    /// If none comes in time, or the connection ends.
    pub async fn take(&mut self, kind: &str) -> Frame {
        self.find(kind, |frame| frame.kind() == kind).await
    }

    /// The next `message`.
    ///
    /// # Panics
    /// If none comes in time, or the connection ends.
    pub async fn message(&mut self) -> Value {
        self.take("message").await.json
    }

    /// The `data` of the next `count` messages.
    ///
    /// # Panics
    /// If they do not come in time.
    pub async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(self.message().await["data"].take());
        }
        data
    }

    /// The frames that came and have not been returned; reads nothing more.
    pub fn received(&mut self) -> Vec<Frame> {
        self.waiting.drain(..).collect()
    }

    /// Reads up to the end of the connection and returns it; the frames before it stay for later.
    ///
    /// # Panics
    /// If the connection does not end in time.
    pub async fn ended(&mut self) -> Ended {
        loop {
            match within(&format!("the end of a {}", self.transport.name()), self.read()).await {
                Ok(frame) => self.waiting.push_back(frame),
                Err(ended) => return ended,
            }
        }
    }

    /// The first frame that is wanted, among those that have come and those that will; the others stay for later.
    async fn find(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(index) = self.waiting.iter().position(&wanted) {
            return self.waiting.remove(index).expect("the index was just found");
        }
        let search = async {
            loop {
                match self.read().await {
                    Ok(frame) if wanted(&frame) => return Ok(frame),
                    Ok(frame) => self.waiting.push_back(frame),
                    Err(ended) => return Err(ended),
                }
            }
        };
        let found = tokio::time::timeout(patience(), search).await;
        let name = self.transport.name();
        match found {
            Ok(Ok(frame)) => frame,
            Ok(Err(ended)) => panic!("{name}: {ended:?} instead of {what}; before it came {:?}", self.waiting),
            Err(_) => panic!("{name}: timed out waiting for {what}; other frames: {:?}", self.waiting),
        }
    }

    /// The next frame from the connection, without a deadline.
    async fn read(&mut self) -> Result<Frame, Ended> {
        loop {
            match self.connection.next().await {
                Received::Text(text) => {
                    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    let frame = Frame { text, json };
                    self.keep_cursor(&frame);
                    return Ok(frame);
                }
                Received::KeepAlive => {}
                Received::Ended(ended) => return Err(ended),
            }
        }
    }

    fn keep_cursor(&mut self, frame: &Frame) {
        let field = match frame.kind() {
            "message" | "joined" => "cursor",
            "gap" => "to",
            _ => return,
        };
        // Rooms without history have no cursor; the cursor of several rooms contains `-` for them.
        let cursor = frame.json[field].as_str().unwrap_or("-").to_owned();
        self.cursors.insert(frame.json["room"].as_str().unwrap_or_default().to_owned(), cursor);
    }
}
