//! Every way in which a client can be carried, and one face for all of them: `Connection` is what comes in as it comes, `TransportClient`
//! is what sentences are written over. Called by `member`, the fault runs and the tests; it never reconnects by itself,
//! and it knows nothing of the gateway but its wire.

pub mod client;
pub mod connection;
pub mod http_connection;
pub mod ndjson;
pub mod poll;
pub mod poller;
pub mod sse;
pub mod sse_parser;

use std::time::Duration;

pub use client::TransportClient;
pub use connection::{Connection, Ended, Received};
pub use sse_parser::SseBlock;

use crate::http::Reply;
use crate::socket;

/// How a client is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// `/ws`.
    WebSocket,
    /// `/sse`.
    Sse,
    /// `/stream`.
    Stream,
    /// `/poll`, each waiting for a message.
    LongPoll,
    /// `/poll` with `wait=0`, again and again.
    ShortPoll,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::WebSocket, Self::Sse, Self::Stream, Self::LongPoll, Self::ShortPoll];
    /// Those whose commands go by POST to `welcome.post`.
    pub const ONE_WAY: [Self; 2] = [Self::Sse, Self::Stream];
    /// Those that have no session of their own.
    pub const POLLS: [Self; 2] = [Self::LongPoll, Self::ShortPoll];

    /// How it is called in verdicts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Sse => "SSE",
            Self::Stream => "stream",
            Self::LongPoll => "long poll",
            Self::ShortPoll => "short poll",
        }
    }

    /// Whether it polls.
    #[must_use]
    pub fn polls(self) -> bool {
        Self::POLLS.contains(&self)
    }

    /// A walk over all of them in which every ordered pair of neighbours, equal ones too, stands exactly once: a de
    /// Bruijn sequence of order two, closed by its first.
    #[must_use]
    pub fn walk() -> Vec<Self> {
        let mut walk = Vec::new();
        for (place, one) in Self::ALL.into_iter().enumerate() {
            walk.push(one);
            for other in &Self::ALL[place + 1..] {
                walk.extend([one, *other]);
            }
        }
        walk.push(Self::ALL[0]);
        walk
    }

    /// The last part of its path.
    fn path_end(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Sse => "sse",
            Self::Stream => "stream",
            Self::LongPoll | Self::ShortPoll => "poll",
        }
    }
}

/// What is asked for: rooms, from where, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomRequest {
    /// In this order.
    pub rooms: Vec<String>,
    /// A cursor for all of them.
    pub since: Option<String>,
    /// More of the query: `presence=1&last=2`.
    pub query: String,
    /// At most so long between two short polls, whatever the server advises: tests have little time.
    pub pace_max: Duration,
}

/// The pace of short polls where a sentence does not say another.
const PACE: Duration = Duration::from_millis(50);

impl RoomRequest {
    /// For these rooms, live.
    #[must_use]
    pub fn of(rooms: &[&str]) -> Self {
        let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
        Self { rooms, pace_max: PACE, ..Self::default() }
    }

    /// What comes after this cursor.
    #[must_use]
    pub fn since(mut self, since: impl Into<String>) -> Self {
        self.since = Some(since.into());
        self
    }

    /// More of the query.
    #[must_use]
    pub fn with(mut self, query: &str) -> Self {
        query.clone_into(&mut self.query);
        self
    }

    /// The path and query for a transport; `since` in the query unless it is told otherwise.
    #[must_use]
    pub fn path(&self, transport: Transport, since: Option<&str>) -> String {
        let rooms: Vec<String> = self.rooms.iter().map(|room| encode(room)).collect();
        let mut path = format!("/v1/rooms/{}/{}", rooms.join(","), transport.path_end());
        let mut mark = '?';
        let since = since.map(|since| format!("since={since}"));
        for part in
            [Some(self.query.as_str()).filter(|query| !query.is_empty()), since.as_deref()].into_iter().flatten()
        {
            path.push(mark);
            path.push_str(part);
            mark = '&';
        }
        path
    }
}

/// Why there is nothing to listen to.
#[derive(Debug)]
pub enum Refused {
    /// The server's answer.
    PollResponse(Box<Reply>),
    /// No answer.
    Network(String),
}

impl Refused {
    fn network(error: impl std::fmt::Display) -> Self {
        Self::Network(error.to_string())
    }

    /// When to come back, if the server said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::PollResponse(reply) => reply.header("retry-after").parse().ok().map(Duration::from_secs),
            Self::Network(_) => None,
        }
    }
}

impl From<socket::Refused> for Refused {
    fn from(refused: socket::Refused) -> Self {
        match refused {
            socket::Refused::Status(status) => {
                Self::PollResponse(Box::new(Reply { status, headers: hyper::HeaderMap::new(), text: String::new() }))
            }
            socket::Refused::Network(why) => Self::Network(why),
        }
    }
}

/// A room's name as one segment of a path.
#[must_use]
pub fn encode(room: &str) -> String {
    let mut text = String::with_capacity(room.len());
    for byte in room.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'~' | b'-' | b':' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{RoomRequest, Transport};
    use std::collections::BTreeSet;

    #[test]
    fn the_walk_takes_every_ordered_pair_once() {
        let walk = Transport::walk();
        let pairs: Vec<_> = walk.windows(2).map(|pair| (pair[0], pair[1])).collect();
        assert_eq!((pairs.len(), pairs.iter().collect::<BTreeSet<_>>().len()), (25, 25), "{walk:?}");
    }

    #[test]
    fn a_target_names_rooms_options_and_the_place() {
        let request = RoomRequest::of(&["chat:1", "a/b,c"]).with("last=2");
        assert_eq!(request.path(Transport::Sse, None), "/v1/rooms/chat:1,a%2Fb%2Cc/sse?last=2");
        let path = request.with("").path(Transport::LongPoll, Some("epoch_-8.1~"));
        assert_eq!(path, "/v1/rooms/chat:1,a%2Fb%2Cc/poll?since=epoch_-8.1~");
    }
}
