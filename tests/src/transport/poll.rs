//! The answer of a poll, and single polls. Called by `polling`, which goes on and on, and by the tests of what only polls
//! can get wrong; it never asks twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{RoomRequest, Transport};
use crate::http::{self, Call, Reply};

/// The body of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollResponse {
    /// What keeps a lease; secret.
    pub session: String,
    /// The place after `messages`, of a poll by path.
    pub cursor: Option<String>,
    /// The same, of a `POST /v1/poll`.
    pub cursors: Option<BTreeMap<String, String>>,
    /// As they came.
    messages: Vec<Box<RawValue>>,
    /// Whether there is more already.
    pub more: bool,
    /// What is gone, by room.
    pub gap: Option<BTreeMap<String, Missed>>,
    /// When to request again.
    pub next_ms: u64,
}

/// How much is gone.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Missed {
    /// None: nobody can know.
    pub missed: Option<u64>,
}

impl PollResponse {
    /// Reads one.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let answer: Self = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(answer.cursor.is_some() != answer.cursors.is_some(), "either one cursor or one for each room: {text}");
        answer
    }

    /// The messages, byte for byte.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().map(|message| message.get())
    }

    /// The `data` of the messages.
    ///
    /// # Panics
    /// When one is no JSON.
    #[must_use]
    pub fn data(&self) -> Vec<Value> {
        let parse = |text| serde_json::from_str::<Value>(text).expect("a message is JSON");
        self.messages().map(|text| parse(text)["data"].take()).collect()
    }

    /// The cursor of a poll by path.
    ///
    /// # Panics
    /// When it has another kind.
    #[must_use]
    pub fn cursor(&self) -> &str {
        self.cursor.as_deref().expect("a poll by path has one cursor")
    }
}

/// A poll, to be sent.
#[must_use]
pub fn get(address: SocketAddr, request: &RoomRequest) -> Call {
    http::get(address, &request.path(Transport::LongPoll, request.since.as_deref()))
}

/// A poll that is answered at once.
///
/// # Panics
/// When it is refused.
pub async fn once(address: SocketAddr, request: &RoomRequest) -> PollResponse {
    let query = if request.query.is_empty() { "wait=0".to_owned() } else { format!("{}&wait=0", request.query) };
    served(&get(address, &request.clone().with(&query)).send().await)
}

/// A poll with the rooms and their places in its body.
#[must_use]
pub fn post(address: SocketAddr, body: &Value) -> Call {
    http::post(address, "/v1/poll", body)
}

/// The answer in a reply that must be one.
///
/// # Panics
/// When it is something else.
#[must_use]
pub fn served(reply: &Reply) -> PollResponse {
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{reply:?}");
    PollResponse::parse(&reply.text)
}

/// The body of a poll by POST: each room with its place, or none for its head.
#[must_use]
pub fn body(rooms: &[(&str, Option<&str>)], wait_s: u64) -> Value {
    let rooms: serde_json::Map<String, Value> =
        rooms.iter().map(|(room, place)| ((*room).to_owned(), json!(place))).collect();
    json!({"rooms": rooms, "wait": wait_s})
}
