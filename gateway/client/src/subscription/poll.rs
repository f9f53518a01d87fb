//! Requests that name all rooms at once, and what the response to a poll says. `subscribe` sends and receives them. The
//! server counts the parts of a cursor of several rooms in the order in which the request named them.

use super::{GapSize, Subscription, SubscriptionAction, bounded, unknown_protocol};
use crate::url::percent_encoded;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

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

/// What to do about a poll's response: show the notes, print the messages, then poll again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PollOutcome<'a> {
    /// For the user.
    pub(crate) notes: Vec<String>,
    /// The messages, in order.
    pub(crate) messages: Vec<&'a str>,
    /// Whether there is more at once.
    pub(crate) more: bool,
    /// When the server wants to be polled again.
    pub(crate) next: Duration,
}

#[derive(Deserialize)]
struct PollResponse<'a> {
    session: Option<String>,
    cursor: Option<String>,
    /// Sent instead of `cursor` if the poll named its rooms in a body.
    cursors: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
    #[serde(default)]
    more: bool,
    gap: Option<BTreeMap<String, GapSize>>,
    #[serde(default)]
    next_ms: u64,
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

    /// Takes the body of a poll's response, which may be the first one of its connection. The error is the step for a
    /// body that is not of this protocol.
    pub(crate) fn poll_response<'a>(
        &mut self,
        body: &'a str,
        is_first: bool,
    ) -> Result<PollOutcome<'a>, SubscriptionAction> {
        let response: PollResponse<'a> = serde_json::from_str(body).map_err(|_| unknown_protocol())?;
        let messages: Vec<_> = response.messages.iter().map(|message| message.get()).collect();
        let had_cursor: Vec<_> = self.requested.iter().map(|index| self.rooms[*index].cursor.is_some()).collect();
        for message in &messages {
            if self.frame(message) != SubscriptionAction::Message {
                return Err(unknown_protocol());
            }
        }
        if let Some(cursor) = response.cursor {
            self.advance(&cursor);
        }
        for (name, cursor) in response.cursors.unwrap_or_default() {
            if let Some(room) = self.rooms.iter_mut().find(|room| room.name == name) {
                room.cursor = Some(cursor);
            }
        }
        self.poll_session = response.session.or(self.poll_session.take());
        let notes = self.poll_notes(is_first, &had_cursor, &response.gap.unwrap_or_default());
        Ok(PollOutcome { notes, messages, more: response.more, next: bounded(response.next_ms) })
    }

    /// The first response of a connection tells where each room goes on, later ones only their gaps. `had_cursor` says for
    /// each requested room whether the request had a cursor for it.
    fn poll_notes(&mut self, is_first: bool, had_cursor: &[bool], gaps: &BTreeMap<String, GapSize>) -> Vec<String> {
        let mut notes = Vec::new();
        for (index, had_cursor) in self.requested.iter().zip(had_cursor) {
            let room = &mut self.rooms[*index];
            room.history = None;
            let gap = gaps.get(&room.name).copied();
            if is_first {
                notes.push(room.joined_note(*had_cursor, gap));
            } else {
                notes.extend(gap.map(|gap| room.gap_note(gap)));
            }
        }
        notes
    }
}
