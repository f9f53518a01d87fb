//! Single polls and their responses. Called by `poller`, which polls again and again, and by the tests of what only
//! polls can get wrong. Each function sends one request.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::kind::Transport;
use super::request::RoomRequest;
use crate::http::{self, Call, Reply};

/// The body of the response to a poll.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollResponse {
    /// The secret with which the client keeps its presence lease.
    pub session: String,
    /// The cursor after `messages`, in the response to a `GET`.
    pub cursor: Option<String>,
    /// The cursor of each room after `messages`, in the response to a `POST /v1/poll`.
    pub cursors: Option<BTreeMap<String, String>>,
    /// The messages, byte for byte.
    messages: Vec<Box<RawValue>>,
    /// Whether the server has more messages already.
    pub more: bool,
    /// What is missing before `messages`, by room.
    pub gap: Option<BTreeMap<String, Missed>>,
    /// The time after which the client should poll again.
    pub next_ms: u64,
}

/// The size of a gap.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Missed {
    /// The number of messages that are missing; `None` if it cannot be known.
    pub missed: Option<u64>,
}

impl PollResponse {
    /// Parses a body.
    ///
    /// # Panics
    /// If it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let response: Self = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(response.cursor.is_some() != response.cursors.is_some(), "one cursor, or one for each room: {text}");
        response
    }

    /// The messages, byte for byte.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().map(|message| message.get())
    }

    /// The `data` of the messages.
    ///
    /// # Panics
    /// If a message is not JSON.
    #[must_use]
    pub fn data(&self) -> Vec<Value> {
        let parse = |text| serde_json::from_str::<Value>(text).expect("a message is JSON");
        self.messages().map(|text| parse(text)["data"].take()).collect()
    }

    /// The cursor in the response to a `GET`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn cursor(&self) -> &str {
        self.cursor.as_deref().expect("the response to a GET has one cursor")
    }
}

/// A poll by `GET` that has yet to be sent.
#[must_use]
pub fn get(address: SocketAddr, request: &RoomRequest) -> Call {
    http::get(address, &request.path(Transport::LongPoll, request.since.as_deref()))
}

/// The response to a poll that does not wait.
///
/// # Panics
/// If it is refused.
pub async fn once(address: SocketAddr, request: &RoomRequest) -> PollResponse {
    let query = if request.query.is_empty() { "wait=0".to_owned() } else { format!("{}&wait=0", request.query) };
    served(&get(address, &request.clone().with(&query)).send().await)
}

/// A poll by `POST` that has yet to be sent; `body` holds the rooms and their cursors.
#[must_use]
pub fn post(address: SocketAddr, body: &Value) -> Call {
    http::post(address, "/v1/poll", body)
}

/// The response in a reply to a poll.
///
/// # Panics
/// If the reply is anything else.
#[must_use]
pub fn served(reply: &Reply) -> PollResponse {
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{reply:?}");
    PollResponse::parse(&reply.text)
}

/// The body of a poll by `POST`: each room with its cursor, or with `None` for messages from now on.
#[must_use]
pub fn body(rooms: &[(&str, Option<&str>)], wait_s: u64) -> Value {
    let rooms: serde_json::Map<String, Value> =
        rooms.iter().map(|(room, cursor)| ((*room).to_owned(), json!(cursor))).collect();
    json!({"rooms": rooms, "wait": wait_s})
}
