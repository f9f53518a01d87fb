//! Requests that name all rooms at once: their paths, queries and bodies. The server counts the parts of a cursor of several
//! rooms in the order in which the request named them.

use super::rooms::Subscription;
use crate::url::percent_encoded;
use std::fmt::Write as _;

/// The longest target of a GET, in bytes; longer polls are posted. Proxies take 8 KiB at least (RFC 9110 section 4.1), and
/// the other headers need room too.
const TARGET_BYTES_MAX: usize = 6 << 10;

/// A poll.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PollRequest {
    /// A GET of this path and query.
    Get(String),
    /// A POST of this body to `/v1/poll`, where the list of rooms is too long for a URL.
    Post(String),
}

impl Subscription {
    /// Path and query that ask `transport` for all rooms from their cursors.
    pub(crate) fn target(&mut self, transport: &str) -> String {
        let rooms = &self.rooms;
        let wanted = || (0..rooms.len()).filter(|index| !rooms[*index].has_ended);
        // A comma separates the names of a path, encoded or not, so a name with a comma goes into the query.
        let (in_query, mut requested): (Vec<_>, Vec<_>) = wanted().partition(|index| rooms[*index].name.contains(','));
        let path: Vec<_> = requested.iter().map(|index| percent_encoded(&rooms[*index].name)).collect();
        let mut parameters: Vec<_> =
            in_query.iter().map(|index| format!("room={}", percent_encoded(&rooms[*index].name))).collect();
        requested.extend(in_query);
        if requested.iter().any(|index| rooms[*index].cursor.is_some()) {
            let parts: Vec<_> =
                requested.iter().map(|index| rooms[*index].cursor.as_deref().unwrap_or_default()).collect();
            parameters.push(format!("since={}", percent_encoded(&parts.join("~"))));
        }
        let history = requested.iter().find_map(|index| rooms[*index].history);
        parameters.extend(history.map(|last| format!("last={last}")));
        self.requested = requested;
        let mut target = format!("/v1/rooms/{}/{transport}", path.join(","));
        let mut mark = '?';
        for parameter in parameters {
            let _ = write!(target, "{mark}{parameter}");
            mark = '&';
        }
        target
    }

    /// The next poll, which the server may hold for `wait_s`.
    pub(crate) fn poll_request(&mut self, wait_s: u64) -> PollRequest {
        let mut target = self.target("poll");
        let mark = if target.contains('?') { '&' } else { '?' };
        let _ = write!(target, "{mark}wait={wait_s}");
        if let Some(session) = &self.poll_session {
            let _ = write!(target, "&session={}", percent_encoded(session));
        }
        match target.len() {
            0..=TARGET_BYTES_MAX => PollRequest::Get(target),
            _ => PollRequest::Post(self.poll_body(wait_s)),
        }
    }

    fn poll_body(&self, wait_s: u64) -> String {
        let requested = || self.requested.iter().map(|index| &self.rooms[*index]);
        let rooms: serde_json::Map<_, _> =
            requested().map(|room| (room.name.clone(), room.cursor.as_deref().into())).collect();
        let mut body = serde_json::json!({ "rooms": rooms, "wait": wait_s });
        if let Some(last) = requested().find_map(|room| room.history) {
            body["last"] = last.into();
        }
        if let Some(session) = &self.poll_session {
            body["session"] = session.as_str().into();
        }
        body.to_string()
    }
}
