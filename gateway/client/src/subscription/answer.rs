//! What a poll's answer says. `subscribe::poll` brings it; the messages stay the bytes they were.

use super::{Missed, Step, Subscription, bounded, stranger};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::BTreeMap, time::Duration};

/// What to do about an answer: notes, then messages, then the next poll.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken<'a> {
    /// Tell the user.
    pub(crate) notes: Vec<String>,
    /// Print these.
    pub(crate) messages: Vec<&'a str>,
    /// There is more at once: the server wants no pause.
    pub(crate) more: bool,
    /// When the server wants to be asked again.
    pub(crate) next: Duration,
}

#[derive(Deserialize)]
struct Answer<'a> {
    session: Option<String>,
    cursor: Option<String>,
    /// In place of `cursor`, where the poll named its rooms in a body.
    cursors: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
    #[serde(default)]
    more: bool,
    gap: Option<BTreeMap<String, Missed>>,
    #[serde(default)]
    next_ms: u64,
}

impl Subscription {
    /// Takes a poll's answer.
    pub(crate) fn answer<'a>(&mut self, body: &'a str) -> Result<Taken<'a>, Step> {
        let answer: Answer<'a> = serde_json::from_str(body).map_err(|_| stranger())?;
        let messages: Vec<_> = answer.messages.iter().map(|message| message.get()).collect();
        let came_from: Vec<_> = self.asked.iter().map(|index| self.rooms[*index].cursor.is_some()).collect();
        for message in &messages {
            if self.frame(message) != Step::Message {
                return Err(stranger());
            }
        }
        if let Some(cursor) = answer.cursor {
            self.place(&cursor);
        }
        for (room, cursor) in answer.cursors.unwrap_or_default() {
            if let Some(followed) = self.rooms.iter_mut().find(|followed| followed.room == room) {
                followed.cursor = Some(cursor);
            }
        }
        self.lease = answer.session.or(self.lease.take());
        let notes = self.notes(&came_from, &answer.gap.unwrap_or_default());
        Ok(Taken { notes, messages, more: answer.more, next: bounded(Some(answer.next_ms)) })
    }

    /// The next answer is the first of a connection.
    pub(crate) fn begin_polling(&mut self) {
        self.is_polling = false;
    }

    /// The first answer says where each room goes on, the others what is lost. `came_from`: which rooms were asked for from
    /// a cursor.
    fn notes(&mut self, came_from: &[bool], gap: &BTreeMap<String, Missed>) -> Vec<String> {
        let mut notes = Vec::new();
        let is_first = !std::mem::replace(&mut self.is_polling, true);
        for (index, came_from) in self.asked.iter().zip(came_from) {
            let followed = &mut self.rooms[*index];
            followed.history = None;
            match (is_first, gap.get(&followed.room).map(Missed::text)) {
                (true, Some(what)) => {
                    notes.push(format!("joined {} at {}, after a gap: {what}", followed.room, followed.place()));
                }
                (true, None) => {
                    let how = if *came_from { ", resumed" } else { "" };
                    notes.push(format!("joined {} at {}{how}", followed.room, followed.place()));
                }
                (false, Some(what)) => {
                    notes.push(format!("gap in {}: {what}; it goes on to {}", followed.room, followed.place()));
                }
                (false, None) => {}
            }
        }
        notes
    }
}
