//! What `fanfare sub` knows about its rooms: frames, cursors, poll responses and ends of connections go in, what to do comes
//! out. Every transport of `subscribe` drives it. There is no clock, socket or output in here, so that resuming is tested
//! without a server.

mod poll;
#[cfg(test)]
mod tests;

pub(crate) use poll::PollRequest;

use crate::output::Failure;
use serde::Deserialize;
use std::time::Duration;

/// The longest wait before a reconnect that a server may ask for.
pub(crate) const AFTER_MAX: Duration = Duration::from_secs(300);

/// What to do about a frame or the end of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionAction {
    /// Nothing.
    Nothing,
    /// The session has begun: after `silence` without any byte the connection is dead.
    Begin { silence: Duration },
    /// The frame is a message: print it as it came.
    Message,
    /// Show this text to the user.
    Note(String),
    /// Connect again, after the given time or the client's own back-off.
    Reconnect { after: Option<Duration>, why: String },
    /// End the command: a retry cannot help.
    Stop(String),
}

/// A room and how far it has been followed.
#[derive(Debug)]
struct FollowedRoom {
    name: String,
    /// The last message that was seen: the room continues after it.
    cursor: Option<String>,
    /// How many earlier messages the first join asks for; later joins resume.
    history: Option<u32>,
    /// The room was refused or left: it is not joined again.
    has_ended: bool,
}

/// All rooms of one `fanfare sub`.
#[derive(Debug)]
pub(crate) struct Subscription {
    rooms: Vec<FollowedRoom>,
    /// Indices of the rooms in the last request, in its order: a cursor of several rooms has its parts in this order.
    requested: Vec<usize>,
    /// The `session` that polls repeat, so that they count as one member.
    poll_session: Option<String>,
    /// How long the server wants the client to wait before the next reconnect.
    reconnect_after: Option<Duration>,
}

/// The server's frames: the fields that matter here. Unknown ones are ignored, as the protocol asks.
#[derive(Deserialize)]
struct ServerFrame {
    #[serde(rename = "type")]
    kind: String,
    id: Option<usize>,
    room: Option<String>,
    cursor: Option<String>,
    to: Option<String>,
    reason: Option<String>,
    code: Option<Code>,
    message: Option<String>,
    resumed: Option<bool>,
    gap: Option<GapSize>,
    retryable: Option<bool>,
    reconnect: Option<bool>,
    after_ms: Option<u64>,
    retry_after_ms: Option<u64>,
    ping_ms: Option<u64>,
}

/// The code of an `error` is a word, the code of a `close` a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code {
    Close(u16),
    Error(String),
}

/// How many messages are missing at a gap; `None` where the server cannot know.
#[derive(Debug, Clone, Copy, Deserialize)]
struct GapSize {
    missed: Option<u64>,
}

impl Subscription {
    /// Rooms that are followed from `since`, a cursor of all of them, or with the last `history` messages of each.
    pub(crate) fn new(names: Vec<String>, since: Option<&str>, history: Option<u32>) -> Result<Self, Failure> {
        let parts: Vec<_> = since.map(|since| since.split('~').collect()).unwrap_or_default();
        if since.is_some() && parts.len() != names.len() {
            let text = format!("--since: {} cursors for {} rooms; they are joined by ~", parts.len(), names.len());
            return Err(Failure::config(text));
        }
        // An empty part is the room's head, a dash a room without history: both join without a cursor.
        let cursor = |i: usize| parts.get(i).filter(|part| !["", "-"].contains(*part)).map(|part| (*part).to_owned());
        let followed = |(i, name)| FollowedRoom { name, cursor: cursor(i), history, has_ended: false };
        let rooms = names.into_iter().enumerate().map(followed).collect();
        Ok(Self { rooms, requested: Vec::new(), poll_session: None, reconnect_after: None })
    }

    /// The frames that join every room, for a session that takes commands on its connection.
    pub(crate) fn joins(&self) -> Vec<String> {
        let joins = self.rooms.iter().enumerate().filter(|(_, room)| !room.has_ended).map(|(index, room)| {
            // The id tells which join an error without a room is about.
            let mut join = serde_json::json!({ "type": "join", "id": index, "room": room.name });
            match (&room.cursor, room.history) {
                (Some(cursor), _) => join["since"] = cursor.as_str().into(),
                (None, Some(history)) => join["history"] = history.into(),
                (None, None) => {}
            }
            join.to_string()
        });
        joins.collect()
    }

    /// Takes a frame.
    pub(crate) fn frame(&mut self, text: &str) -> SubscriptionAction {
        let Ok(frame) = serde_json::from_str::<ServerFrame>(text) else { return unknown_protocol() };
        match frame.kind.as_str() {
            "welcome" => {
                // Two pings may be late or lost in a stall; the 10 s are for the network.
                let ping = Duration::from_millis(frame.ping_ms.unwrap_or(25_000).clamp(1_000, 600_000));
                SubscriptionAction::Begin { silence: ping * 2 + Duration::from_secs(10) }
            }
            "message" => {
                if let Some(room) = self.room_of(&frame) {
                    room.cursor = frame.cursor.or(room.cursor.take());
                }
                SubscriptionAction::Message
            }
            "joined" => self.joined(frame),
            "gap" => self.gap(&frame),
            // The heartbeat of a stream.
            "ping" => {
                self.advance(frame.cursor.as_deref().unwrap_or_default());
                SubscriptionAction::Nothing
            }
            "left" => self.end(&frame, frame.reason.as_deref().unwrap_or("left")),
            "error" => self.error(&frame),
            "reconnect" => {
                self.retry(frame.after_ms.unwrap_or_default());
                SubscriptionAction::Note(format!(
                    "the server asks to reconnect: {}",
                    frame.reason.as_deref().unwrap_or("no reason")
                ))
            }
            "close" => self.close(&frame),
            _ => SubscriptionAction::Nothing,
        }
    }

    /// Takes a cursor of all rooms of the last request: they have been delivered up to there.
    pub(crate) fn advance(&mut self, cursor: &str) {
        let parts: Vec<_> = cursor.split('~').collect();
        if parts.len() != self.requested.len() {
            return;
        }
        for (part, index) in parts.into_iter().zip(&self.requested) {
            // An empty part is a room that has not been joined yet, a dash one that keeps no history.
            if !["", "-"].contains(&part) {
                self.rooms[*index].cursor = Some(part.to_owned());
            }
        }
    }

    /// Takes the `retry:` of an event stream: how long to wait before the next reconnect.
    pub(crate) fn retry(&mut self, ms: u64) {
        self.reconnect_after = Some(bounded(ms));
    }

    /// Takes the end of a connection: the code and reason of a close frame, or what broke.
    pub(crate) fn closed(&mut self, code: Option<u16>, why: &str) -> SubscriptionAction {
        let why = code.map_or_else(|| why.to_owned(), |code| format!("closed with {code} {why}").trim_end().to_owned());
        match code {
            Some(1009 | 4400..=4499) => SubscriptionAction::Stop(why),
            _ => SubscriptionAction::Reconnect { after: self.reconnect_after.take(), why },
        }
    }

    /// Takes the last frame of a one-way transport, which has no close codes of its own.
    fn close(&mut self, frame: &ServerFrame) -> SubscriptionAction {
        if let Some(ms) = frame.after_ms {
            self.retry(ms);
        }
        let code = if let Some(Code::Close(code)) = &frame.code { Some(*code) } else { None };
        match self.closed(code, frame.reason.as_deref().unwrap_or_default()) {
            SubscriptionAction::Reconnect { why, .. } if frame.reconnect == Some(false) => {
                SubscriptionAction::Stop(why)
            }
            step => step,
        }
    }

    fn joined(&mut self, frame: ServerFrame) -> SubscriptionAction {
        let Some(room) = self.room_of(&frame) else { return SubscriptionAction::Nothing };
        room.cursor = frame.cursor;
        room.history = None;
        let is_resumed = frame.resumed == Some(true);
        SubscriptionAction::Note(room.joined_note(is_resumed, frame.gap.filter(|_| !is_resumed)))
    }

    fn gap(&mut self, frame: &ServerFrame) -> SubscriptionAction {
        let Some(room) = self.room_of(frame) else { return SubscriptionAction::Nothing };
        let Some(to) = frame.to.as_deref() else { return SubscriptionAction::Nothing };
        let gap = GapSize::between(room.cursor.as_deref(), to);
        room.cursor = Some(to.to_owned());
        SubscriptionAction::Note(room.gap_note(gap))
    }

    fn error(&mut self, frame: &ServerFrame) -> SubscriptionAction {
        let code = if let Some(Code::Error(code)) = &frame.code { code } else { "unknown" };
        let what = format!("{code}: {}", frame.message.as_deref().unwrap_or_default());
        if self.room_of(frame).is_none() {
            return SubscriptionAction::Note(what);
        }
        if frame.retryable == Some(true) {
            // A join that failed for now is tried again from the start: a new connection joins every room.
            let hint = self.reconnect_after.take();
            return SubscriptionAction::Reconnect { after: frame.retry_after_ms.map(bounded).or(hint), why: what };
        }
        self.end(frame, &what)
    }

    /// Stops following a room; the last one ends the command.
    fn end(&mut self, frame: &ServerFrame, why: &str) -> SubscriptionAction {
        let Some(room) = self.room_of(frame) else { return SubscriptionAction::Note(why.to_owned()) };
        room.has_ended = true;
        let text = format!("{}: {why}", room.name);
        if self.rooms.iter().all(|room| room.has_ended) {
            SubscriptionAction::Stop(text)
        } else {
            SubscriptionAction::Note(text)
        }
    }

    fn room_of(&mut self, frame: &ServerFrame) -> Option<&mut FollowedRoom> {
        match frame.room.as_deref() {
            Some(name) => self.rooms.iter_mut().find(|room| room.name == name),
            None => self.rooms.get_mut(frame.id?),
        }
    }
}

impl FollowedRoom {
    /// A join, for the user.
    fn joined_note(&self, is_resumed: bool, gap: Option<GapSize>) -> String {
        let how = match gap {
            Some(gap) => format!(", after a gap: {}", gap.text(self.cursor.as_deref())),
            None if is_resumed => ", resumed".to_owned(),
            None => String::new(),
        };
        format!("joined {} at {}{how}", self.name, self.position())
    }

    /// Its cursor, for the user.
    fn position(&self) -> &str {
        self.cursor.as_deref().unwrap_or("no cursor: the room keeps no history")
    }

    /// A gap in a room that is being followed, for the user.
    fn gap_note(&self, gap: GapSize) -> String {
        let what = gap.text(self.cursor.as_deref());
        format!("gap in {}: {what}; the room goes on after {}", self.name, self.position())
    }
}

/// The step for a response of another server, or of a proxy.
pub(crate) fn unknown_protocol() -> SubscriptionAction {
    SubscriptionAction::Stop("the server does not speak this protocol".to_owned())
}

/// A wait that a server asks for, at most [`AFTER_MAX`].
fn bounded(ms: u64) -> Duration {
    Duration::from_millis(ms).min(AFTER_MAX)
}

impl GapSize {
    /// The gap after `from`, the last message that a client has, up to `to`. Offsets of two epochs do not compare.
    fn between(from: Option<&str>, to: &str) -> Self {
        let offset_after = |(epoch, offset): (&str, &str)| {
            let from = from?.strip_prefix(epoch)?.strip_prefix('.')?;
            offset.parse::<u64>().ok()?.checked_sub(from.parse().ok()?)
        };
        Self { missed: to.rsplit_once('.').and_then(offset_after) }
    }

    /// For the user. `to` is the cursor at which the room goes on; a room without history has none.
    fn text(self, to: Option<&str>) -> String {
        match (self.missed, to) {
            (Some(1), _) => "1 message is missing".to_owned(),
            (Some(missed), _) => format!("{missed} messages are missing"),
            (None, Some(_)) => "messages may be missing (a new epoch: nobody knows how many)".to_owned(),
            (None, None) => "messages may be missing (the room keeps no history)".to_owned(),
        }
    }
}
