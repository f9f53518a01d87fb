//! What `fanfare sub` knows about its rooms: a frame, a place, an answer or an end goes in, what to do comes out. Every
//! transport of `subscribe` drives it. No clock, no socket and no output in here, so that resuming is tested without a server.

mod address;
mod answer;

pub(super) use address::Ask;

use super::{EXIT_CONFIG, Failure};
use serde::Deserialize;
use std::{borrow::Cow, time::Duration};

/// The longest wait that a server may ask for.
pub(super) const AFTER_MAX: Duration = Duration::from_secs(300);

/// What to do about a frame or an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// The session has begun: without a sign of life for `silence` the connection is dead.
    Begin { silence: Duration },
    /// It is a message: print the frame as it came.
    Message,
    /// Tell the user.
    Note(String),
    /// Connect again, after the given time or the client's own back-off.
    Reconnect { after: Option<Duration>, why: String },
    /// A retry cannot help.
    Over(String),
}

/// A room and how far it has been followed.
#[derive(Debug)]
struct Followed {
    room: String,
    /// Exclusive: what comes next comes after it.
    cursor: Option<String>,
    /// For the first join only; later ones resume.
    history: Option<u32>,
    /// Refused or left: it is not joined again.
    over: bool,
}

/// All rooms of one `fanfare sub`.
#[derive(Debug)]
pub(super) struct Subscription {
    rooms: Vec<Followed>,
    /// The rooms that the last URL named, in its order: what a cursor of several rooms is about.
    asked: Vec<usize>,
    /// What polls repeat to be one member.
    lease: Option<String>,
    /// A poll has been answered on this connection.
    is_polling: bool,
    /// How long the server wants the next reconnect to wait.
    after: Option<Duration>,
}

/// The fields of all frames that matter here.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<usize>,
    #[serde(borrow)]
    room: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cursor: Option<Cow<'a, str>>,
    #[serde(borrow)]
    to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    code: Option<Code<'a>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    resumed: Option<bool>,
    gap: Option<Missed>,
    retryable: Option<bool>,
    reconnect: Option<bool>,
    after_ms: Option<u64>,
    retry_after_ms: Option<u64>,
    ping_ms: Option<u64>,
}

/// An error's code is a word, a close's a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code<'a> {
    Close(u16),
    #[serde(borrow)]
    Error(Cow<'a, str>),
}

#[derive(Deserialize)]
struct Missed {
    missed: Option<u64>,
}

impl Missed {
    fn text(&self) -> String {
        self.missed.map_or("messages are lost".to_owned(), |missed| format!("{missed} messages are lost"))
    }
}

impl Subscription {
    /// Rooms, from a cursor of all of them or with the last `history` messages of each.
    pub(super) fn new(rooms: Vec<String>, since: Option<&str>, history: Option<u32>) -> Result<Self, Failure> {
        let parts: Vec<_> = since.map(|since| since.split('~').collect()).unwrap_or_default();
        if since.is_some() && parts.len() != rooms.len() {
            let text = format!("--since: {} cursors for {} rooms; they are joined by ~", parts.len(), rooms.len());
            return Err(Failure::new(EXIT_CONFIG, text));
        }
        // An empty part is the room's head, a dash a room without history: both join without a cursor.
        let cursor = |i: usize| parts.get(i).filter(|part| !["", "-"].contains(*part)).map(|part| (*part).to_owned());
        let followed = |(i, room)| Followed { room, cursor: cursor(i), history, over: false };
        let rooms = rooms.into_iter().enumerate().map(followed).collect();
        Ok(Self { rooms, asked: Vec::new(), lease: None, is_polling: false, after: None })
    }

    /// The frames that join every room, for a session that takes commands on its connection.
    pub(super) fn joins(&self) -> Vec<String> {
        let joins = self.rooms.iter().enumerate().filter(|(_, followed)| !followed.over).map(|(index, followed)| {
            // The id says which join an error is about that names no room.
            let mut join = serde_json::json!({ "type": "join", "id": index, "room": followed.room });
            match (&followed.cursor, followed.history) {
                (Some(cursor), _) => join["since"] = cursor.as_str().into(),
                (None, Some(history)) => join["history"] = history.into(),
                (None, None) => {}
            }
            join.to_string()
        });
        joins.collect()
    }

    /// Takes a frame.
    pub(super) fn frame(&mut self, text: &str) -> Step {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else { return stranger() };
        match &*frame.kind {
            "welcome" => begin(&frame),
            "message" => {
                if let Some(followed) = self.followed(&frame) {
                    followed.cursor = frame.cursor.map(Cow::into_owned).or(followed.cursor.take());
                }
                Step::Message
            }
            "joined" => self.joined(frame),
            "gap" => {
                let to = frame.to.as_deref().map(str::to_owned);
                let Some(followed) = self.followed(&frame) else { return Step::Nothing };
                followed.cursor = to.or(followed.cursor.take());
                Step::Note(format!(
                    "gap in {}: messages are lost; it goes on after {}",
                    followed.room,
                    followed.place()
                ))
            }
            // The heartbeat of a stream.
            "ping" => {
                self.place(frame.cursor.as_deref().unwrap_or_default());
                Step::Nothing
            }
            "left" => self.end(&frame, frame.reason.as_deref().unwrap_or("left")),
            "error" => self.error(&frame),
            "reconnect" => {
                self.after = Some(bounded(frame.after_ms));
                Step::Note(format!("the server asks to reconnect: {}", frame.reason.as_deref().unwrap_or("no reason")))
            }
            "close" => self.close(&frame),
            _ => Step::Nothing,
        }
    }

    /// Takes what an event stream says about the next reconnect.
    pub(super) fn retry(&mut self, ms: u64) {
        self.after = Some(bounded(Some(ms)));
    }

    /// Takes the end of a connection: the code and reason of a close frame, or what broke.
    pub(super) fn closed(&mut self, code: Option<u16>, why: &str) -> Step {
        let why = code.map_or_else(|| why.to_owned(), |code| format!("closed with {code} {why}").trim_end().to_owned());
        match code {
            Some(1009 | 4400..=4499) => Step::Over(why),
            _ => Step::Reconnect { after: self.after.take(), why },
        }
    }

    /// The last frame of a one-way transport, which has no close codes of its own.
    fn close(&mut self, frame: &Frame<'_>) -> Step {
        if let Some(ms) = frame.after_ms {
            self.retry(ms);
        }
        let code = if let Some(Code::Close(code)) = &frame.code { Some(*code) } else { None };
        match self.closed(code, frame.reason.as_deref().unwrap_or_default()) {
            Step::Reconnect { why, .. } if frame.reconnect == Some(false) => Step::Over(why),
            step => step,
        }
    }

    fn joined(&mut self, frame: Frame<'_>) -> Step {
        let Some(followed) = self.followed(&frame) else { return Step::Nothing };
        followed.cursor = frame.cursor.map(Cow::into_owned);
        followed.history = None;
        let how = match (frame.resumed, frame.gap) {
            (Some(true), _) => ", resumed".to_owned(),
            (_, Some(missed)) => format!(", after a gap: {}", missed.text()),
            (_, None) => String::new(),
        };
        Step::Note(format!("joined {} at {}{how}", followed.room, followed.place()))
    }

    fn error(&mut self, frame: &Frame<'_>) -> Step {
        let code = if let Some(Code::Error(code)) = &frame.code { code } else { "unknown" };
        let what = format!("{code}: {}", frame.message.as_deref().unwrap_or_default());
        if self.followed(frame).is_none() {
            return Step::Note(what);
        }
        if frame.retryable == Some(true) {
            // A join that failed for now is tried again from the start: a new connection joins every room.
            let hint = self.after.take();
            return Step::Reconnect { after: frame.retry_after_ms.map(|ms| bounded(Some(ms))).or(hint), why: what };
        }
        self.end(frame, &what)
    }

    /// A room is not followed any more; with the last one all is over.
    fn end(&mut self, frame: &Frame<'_>, why: &str) -> Step {
        let Some(followed) = self.followed(frame) else { return Step::Note(why.to_owned()) };
        followed.over = true;
        let text = format!("{}: {why}", followed.room);
        if self.rooms.iter().all(|followed| followed.over) { Step::Over(text) } else { Step::Note(text) }
    }

    fn followed(&mut self, frame: &Frame<'_>) -> Option<&mut Followed> {
        match frame.room.as_deref() {
            Some(room) => self.rooms.iter_mut().find(|followed| followed.room == room),
            None => self.rooms.get_mut(frame.id?),
        }
    }
}

impl Followed {
    fn place(&self) -> &str {
        self.cursor.as_deref().unwrap_or("no cursor: the room keeps no history")
    }
}

fn begin(welcome: &Frame<'_>) -> Step {
    // Two pings may be late or lost in a stall; the third part is for the network.
    let ping = Duration::from_millis(welcome.ping_ms.unwrap_or(25_000).clamp(1_000, 600_000));
    Step::Begin { silence: ping * 2 + Duration::from_secs(10) }
}

/// Somebody else's server, or a proxy's page.
pub(super) fn stranger() -> Step {
    Step::Over("the server does not speak this protocol".to_owned())
}

fn bounded(ms: Option<u64>) -> Duration {
    Duration::from_millis(ms.unwrap_or(0)).min(AFTER_MAX)
}

#[cfg(test)]
mod tests;
