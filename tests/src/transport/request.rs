//! What a client asks for in a URL: rooms, a cursor and options. Called by all clients and by tests that build a request
//! themselves; pure.

use std::time::Duration;

use super::kind::Transport;

/// The rooms a client wants messages from, where to begin, and options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomRequest {
    /// The rooms, in the order of the path.
    pub rooms: Vec<String>,
    /// The cursor of all of them, joined with `~`.
    pub since: Option<String>,
    /// The rest of the query: `presence=1&last=2`.
    pub query: String,
    /// The longest interval between two short polls, whatever `next_ms` advises, because a test has little time.
    pub pace_max: Duration,
}

/// The interval between two short polls of tests that state no other.
const PACE: Duration = Duration::from_millis(50);

impl RoomRequest {
    /// For messages in these rooms from now on.
    #[must_use]
    pub fn of(rooms: &[&str]) -> Self {
        let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
        Self { rooms, pace_max: PACE, ..Self::default() }
    }

    /// Sets the cursor after which messages are wanted.
    #[must_use]
    pub fn since(mut self, since: impl Into<String>) -> Self {
        self.since = Some(since.into());
        self
    }

    /// Sets the rest of the query.
    #[must_use]
    pub fn with(mut self, query: &str) -> Self {
        query.clone_into(&mut self.query);
        self
    }

    /// The path and query for a transport, with `since` as its cursor.
    #[must_use]
    pub fn path(&self, transport: Transport, since: Option<&str>) -> String {
        let rooms: Vec<String> = self.rooms.iter().map(|room| encode(room)).collect();
        let since = since.map(|since| format!("since={since}"));
        let parts = [Some(self.query.as_str()).filter(|query| !query.is_empty()), since.as_deref()];
        let query = parts.into_iter().flatten().collect::<Vec<_>>().join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        format!("/v1/rooms/{}/{}{mark}{query}", rooms.join(","), transport.path_end())
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

    #[test]
    fn a_path_names_rooms_options_and_the_cursor() {
        let request = RoomRequest::of(&["chat:1", "a/b,c"]).with("last=2");
        assert_eq!(request.path(Transport::Sse, None), "/v1/rooms/chat:1,a%2Fb%2Cc/sse?last=2");
        let path = request.with("").path(Transport::LongPoll, Some("epoch_-8.1~"));
        assert_eq!(path, "/v1/rooms/chat:1,a%2Fb%2Cc/poll?since=epoch_-8.1~");
    }
}
