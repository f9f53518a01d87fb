//! What sentences are written over: a client of any transport that speaks in JSON values, keeps every frame's own bytes,
//! knows the place to which it has come, and waits with a deadline. Called by the tests and the fault runs; it never
//! drops a frame, what is not asked for yet waits, and it never reconnects by itself.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::connection::{Connection, Ended, Received};
use super::{Refused, RoomRequest, Transport};
use crate::client::Frame;
use crate::http::{self, Reply};
use crate::wait::within;

/// One client.
#[derive(Debug)]
pub struct TransportClient {
    /// How it is carried.
    pub transport: Transport,
    /// Where it connected.
    pub address: SocketAddr,
    /// The first frame; nothing for polls.
    pub welcome: Value,
    rooms: Vec<String>,
    connection: Connection,
    stash: VecDeque<Frame>,
    /// Where it stands in each room: what it has read, also if it was not asked for yet.
    places: HashMap<String, String>,
    next_id: u64,
}

impl TransportClient {
    /// Opens one and reads its welcome.
    ///
    /// # Panics
    /// When it is refused, or no welcome comes in time.
    pub async fn open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Self {
        let what = format!("a {} to {:?}", transport.name(), request.rooms);
        let opened = within(&what, Self::try_open(address, transport, request)).await;
        opened.unwrap_or_else(|refused| panic!("{} to {request:?}: {refused:?}", transport.name()))
    }

    /// Opens one and waits until it has joined every room.
    ///
    /// # Panics
    /// When it does not join in time.
    pub async fn join(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Self {
        let mut client = Self::open(address, transport, request).await;
        for _ in &request.rooms {
            client.take("joined").await;
        }
        client
    }

    /// Opens one and reads its welcome.
    ///
    /// # Errors
    /// When it is refused, or ends before it says welcome.
    pub async fn try_open(address: SocketAddr, transport: Transport, request: &RoomRequest) -> Result<Self, Refused> {
        let connection = Connection::open(address, transport, request).await?;
        let (rooms, welcome) = (request.rooms.clone(), Value::Null);
        let (stash, places) = (VecDeque::new(), HashMap::new());
        let mut client = Self { transport, address, welcome, rooms, connection, stash, places, next_id: 1 };
        if !transport.polls() {
            match client.read().await {
                Ok(frame) if frame.kind() == "welcome" => client.welcome = frame.json,
                other => return Err(Refused::Network(format!("in place of welcome: {other:?}"))),
            }
        }
        Ok(client)
    }

    /// The public id of this session.
    ///
    /// # Panics
    /// When `welcome` had none.
    #[must_use]
    pub fn session(&self) -> String {
        self.welcome["session"].as_str().expect("welcome has a session").to_owned()
    }

    /// The poller inside.
    ///
    /// # Panics
    /// When this is none.
    pub fn poller(&mut self) -> &mut super::poller::Poller {
        match &mut self.connection {
            Connection::Poller(poller) => poller,
            other => panic!("not a poll: {other:?}"),
        }
    }

    /// The cursor of all its rooms in the order in which they were asked for, after everything that was read: what this
    /// client would come back with.
    #[must_use]
    pub fn cursor(&self) -> String {
        let said = self.connection.cursor().map(str::to_owned);
        said.unwrap_or_else(|| self.rooms.iter().map(|room| self.place(room)).collect::<Vec<_>>().join("~"))
    }

    fn place(&self, room: &str) -> &str {
        self.places.get(room).map_or("", String::as_str)
    }

    // Out.

    /// Sends a command with a fresh `id` and returns the reply to it, be it an error or not: a frame over a WebSocket, the
    /// answer to a POST at the same address elsewhere.
    ///
    /// # Panics
    /// When no reply comes in time.
    pub async fn ask(&mut self, command: Value) -> Value {
        self.ask_at(self.address, command).await
    }

    /// As [`TransportClient::request`], with the POST at another address.
    ///
    /// # Panics
    /// When no reply comes in time.
    pub async fn ask_at(&mut self, address: SocketAddr, mut command: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        command["id"] = json!(id);
        if let Connection::WebSocket(socket) = &mut self.connection {
            socket.send(Message::text(command.to_string())).await.expect("the connection takes a frame");
            let what = format!("the reply to {command}");
            return self.find(&what, |frame| frame.json["id"] == json!(id)).await.json;
        }
        let reply = self.command(address, &command).await.expect(200);
        assert_eq!(reply["id"], id, "{reply}");
        reply
    }

    /// Posts a command or an array of them to `welcome.post` at this address.
    ///
    /// # Panics
    /// When there is no such thing, or no answer in time.
    pub async fn command(&self, address: SocketAddr, body: &Value) -> Reply {
        http::post(address, self.post(), body).send().await
    }

    /// The secret path for commands.
    ///
    /// # Panics
    /// When `welcome` had none.
    #[must_use]
    pub fn post(&self) -> &str {
        self.welcome["post"].as_str().unwrap_or_else(|| panic!("welcome has no post: {}", self.welcome))
    }

    // In.

    /// The next frame.
    ///
    /// # Panics
    /// When none comes in time, or the connection ends.
    pub async fn next(&mut self) -> Frame {
        self.find("the next frame", |_| true).await
    }

    /// The next frame of all that come, or how the connection ended; without a deadline.
    ///
    /// # Errors
    /// The end.
    pub async fn try_next(&mut self) -> Result<Frame, Ended> {
        match self.stash.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read().await,
        }
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

    /// The `data` of the next `count` messages.
    ///
    /// # Panics
    /// When they do not come in time.
    pub async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(self.message().await["data"].take());
        }
        data
    }

    /// What has come and was not asked for; reads nothing more.
    pub fn received(&mut self) -> Vec<Frame> {
        self.stash.drain(..).collect()
    }

    /// Reads to the end and says how it ended; frames that came before it stay for later.
    ///
    /// # Panics
    /// When it goes on.
    pub async fn ended(&mut self) -> Ended {
        loop {
            match within(&format!("the end of a {}", self.transport.name()), self.read()).await {
                Ok(frame) => self.stash.push_back(frame),
                Err(ended) => return ended,
            }
        }
    }

    /// The first frame that is wanted, also of those that wait; others stay.
    async fn find(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(place) = self.stash.iter().position(&wanted) {
            return self.stash.remove(place).expect("the place was just found");
        }
        let search = async {
            loop {
                match self.read().await {
                    Ok(frame) if wanted(&frame) => return Ok(frame),
                    Ok(frame) => self.stash.push_back(frame),
                    Err(ended) => return Err(ended),
                }
            }
        };
        let found = tokio::time::timeout(crate::wait::patience(), search).await;
        let name = self.transport.name();
        match found {
            Ok(Ok(frame)) => frame,
            Ok(Err(ended)) => panic!("{name}: waiting for {what}: {ended:?}; before it came {:?}", self.stash),
            Err(_) => panic!("{name}: waited in vain for {what}; what came: {:?}", self.stash),
        }
    }

    /// The next frame from the connection, without a deadline.
    async fn read(&mut self) -> Result<Frame, Ended> {
        loop {
            match self.connection.next().await {
                Received::Text(text) => {
                    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    let frame = Frame { text, json };
                    self.keep_place(&frame);
                    return Ok(frame);
                }
                Received::KeepAlive => {}
                Received::Ended(ended) => return Err(ended),
            }
        }
    }

    fn keep_place(&mut self, frame: &Frame) {
        let field = match frame.kind() {
            "message" | "joined" => "cursor",
            "gap" => "to",
            _ => return,
        };
        // A room without history has no place.
        let place = frame.json[field].as_str().unwrap_or("-").to_owned();
        self.places.insert(frame.json["room"].as_str().unwrap_or_default().to_owned(), place);
    }
}
