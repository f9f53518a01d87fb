//! What the response to a poll says. `subscribe::poll` fetches it. Messages stay the bytes that came.

use super::{
    frame::Gap,
    rooms::{Step, Subscription, bounded, unknown_protocol},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::BTreeMap, time::Duration};

/// What to do about a poll's response: show the notes, print the messages, then poll again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PollResult<'a> {
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
    gap: Option<BTreeMap<String, Gap>>,
    #[serde(default)]
    next_ms: u64,
}

impl Subscription {
    /// Takes the body of a poll's response, which may be the first one of its connection. The error is the step for a body
    /// that is not of this protocol.
    pub(crate) fn poll_response<'a>(&mut self, body: &'a str, is_first: bool) -> Result<PollResult<'a>, Step> {
        let response: PollResponse<'a> = serde_json::from_str(body).map_err(|_| unknown_protocol())?;
        let messages: Vec<_> = response.messages.iter().map(|message| message.get()).collect();
        let had_cursor: Vec<_> = self.requested.iter().map(|index| self.rooms[*index].cursor.is_some()).collect();
        for message in &messages {
            if self.frame(message) != Step::Message {
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
        Ok(PollResult { notes, messages, more: response.more, next: bounded(Some(response.next_ms)) })
    }

    /// The first response of a connection tells where each room goes on, later ones only their gaps. `had_cursor` says for
    /// each requested room whether the request had a cursor for it.
    fn poll_notes(&mut self, is_first: bool, had_cursor: &[bool], gaps: &BTreeMap<String, Gap>) -> Vec<String> {
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
