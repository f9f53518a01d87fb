//! What `fanfare sub` knows about its rooms: a frame or a close goes in, what to do comes out. `subscribe` drives it. No
//! clock, no socket and no output in here, so that resuming is tested without a server.

use super::{EXIT_CONFIG, Failure};
use serde::Deserialize;
use std::{borrow::Cow, time::Duration};

/// The longest wait that a server may ask for.
const AFTER_MAX: Duration = Duration::from_secs(300);

/// What to do about a frame or a close.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// The session has begun: send these frames; without a sign of life for `silence` the connection is dead.
    Begin { frames: Vec<String>, silence: Duration },
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
    after: Option<Duration>,
}

/// The fields of all frames that matter here.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    room: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cursor: Option<Cow<'a, str>>,
    #[serde(borrow)]
    to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    resumed: Option<bool>,
    gap: Option<Missed>,
    retryable: Option<bool>,
    after_ms: Option<u64>,
    retry_after_ms: Option<u64>,
    ping_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Missed {
    missed: Option<u64>,
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
        Ok(Self { rooms: rooms.into_iter().enumerate().map(followed).collect(), after: None })
    }

    /// Takes a frame.
    pub(super) fn frame(&mut self, text: &str) -> Step {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else {
            return Step::Over("the server does not speak this protocol".to_owned());
        };
        match &*frame.kind {
            "welcome" => self.begin(&frame),
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
            "left" => self.end(&frame, frame.reason.as_deref().unwrap_or("left")),
            "error" => self.error(&frame),
            "reconnect" => {
                self.after = Some(bounded(frame.after_ms));
                Step::Note(format!("the server asks to reconnect: {}", frame.reason.as_deref().unwrap_or("no reason")))
            }
            _ => Step::Nothing,
        }
    }

    /// Takes the end of a connection: the code and reason of a close frame, or what broke.
    pub(super) fn closed(&mut self, code: Option<u16>, why: &str) -> Step {
        let why = code.map_or_else(|| why.to_owned(), |code| format!("closed with {code} {why}").trim_end().to_owned());
        match code {
            Some(1009 | 4400..=4499) => Step::Over(why),
            _ => Step::Reconnect { after: self.after.take(), why },
        }
    }

    fn begin(&mut self, welcome: &Frame<'_>) -> Step {
        self.after = None;
        let joins = self.rooms.iter().filter(|followed| !followed.over).map(|followed| {
            let mut join = serde_json::json!({ "type": "join", "room": followed.room });
            match (&followed.cursor, followed.history) {
                (Some(cursor), _) => join["since"] = cursor.as_str().into(),
                (None, Some(history)) => join["history"] = history.into(),
                (None, None) => {}
            }
            join.to_string()
        });
        // Two pings may be late or lost in a stall; the third part is for the network.
        let ping = Duration::from_millis(welcome.ping_ms.unwrap_or(25_000).clamp(1_000, 600_000));
        Step::Begin { frames: joins.collect(), silence: ping * 2 + Duration::from_secs(10) }
    }

    fn joined(&mut self, frame: Frame<'_>) -> Step {
        let Some(followed) = self.followed(&frame) else { return Step::Nothing };
        followed.cursor = frame.cursor.map(Cow::into_owned);
        followed.history = None;
        let how = match (frame.resumed, frame.gap) {
            (Some(true), _) => ", resumed".to_owned(),
            (_, Some(Missed { missed: Some(missed) })) => format!(", after a gap: {missed} messages are lost"),
            (_, Some(Missed { missed: None })) => ", after a gap: messages are lost".to_owned(),
            (_, None) => String::new(),
        };
        Step::Note(format!("joined {} at {}{how}", followed.room, followed.place()))
    }

    fn error(&mut self, frame: &Frame<'_>) -> Step {
        let code = frame.code.as_deref().unwrap_or("unknown");
        let what = format!("{code}: {}", frame.message.as_deref().unwrap_or_default());
        match (frame.retryable, &frame.room) {
            // A join that failed for now is tried again from the start: a new connection joins every room.
            (Some(true), Some(_)) => {
                Step::Reconnect { after: frame.retry_after_ms.map(|ms| bounded(Some(ms))), why: what }
            }
            (_, Some(_)) => self.end(frame, &what),
            (_, None) => Step::Note(what),
        }
    }

    /// A room is not followed any more; with the last one all is over.
    fn end(&mut self, frame: &Frame<'_>, why: &str) -> Step {
        let Some(followed) = self.followed(frame) else { return Step::Note(why.to_owned()) };
        followed.over = true;
        let text = format!("{}: {why}", followed.room);
        if self.rooms.iter().all(|followed| followed.over) { Step::Over(text) } else { Step::Note(text) }
    }

    fn followed(&mut self, frame: &Frame<'_>) -> Option<&mut Followed> {
        let room = frame.room.as_deref()?;
        self.rooms.iter_mut().find(|followed| followed.room == room)
    }
}

impl Followed {
    fn place(&self) -> &str {
        self.cursor.as_deref().unwrap_or("no cursor: the room keeps no history")
    }
}

fn bounded(ms: Option<u64>) -> Duration {
    Duration::from_millis(ms.unwrap_or(0)).min(AFTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELCOME: &str = r#"{"type":"welcome","session":"s","node":"n","ping_ms":5000,"limits":{}}"#;

    fn of(rooms: &[&str], since: Option<&str>, history: Option<u32>) -> Subscription {
        Subscription::new(rooms.iter().map(|room| (*room).to_owned()).collect(), since, history).unwrap()
    }

    fn joins(subscription: &mut Subscription) -> Vec<String> {
        match subscription.frame(WELCOME) {
            Step::Begin { frames, silence } => {
                assert_eq!(silence.as_secs(), 20);
                frames
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_room_resumes_after_the_last_message_seen() {
        let mut subscription = of(&["a", "b", "c"], None, Some(3));
        assert_eq!(joins(&mut subscription)[0], r#"{"history":3,"room":"a","type":"join"}"#);
        let note = subscription.frame(r#"{"type":"joined","room":"a","cursor":"Epoch000.4"}"#);
        assert_eq!(note, Step::Note("joined a at Epoch000.4".to_owned()));
        subscription.frame(r#"{"type":"joined","room":"b","cursor":"Epoch001.0"}"#);
        subscription.frame(r#"{"type":"joined","room":"c"}"#);
        let message =
            r#"{"type":"message","room":"a","cursor":"Epoch000.5","data":{"type":"x"},"from":{"session":"s"},"ts":1}"#;
        assert_eq!(subscription.frame(message), Step::Message);
        assert_eq!(subscription.frame(r#"{"type":"message","room":"c","data":1,"ts":1}"#), Step::Message);
        subscription.frame(r#"{"type":"gap","room":"b","from":"Epoch001.0","to":"Epoch002.9"}"#);
        assert_eq!(
            joins(&mut subscription),
            [
                r#"{"room":"a","since":"Epoch000.5","type":"join"}"#,
                r#"{"room":"b","since":"Epoch002.9","type":"join"}"#,
                r#"{"room":"c","type":"join"}"#,
            ]
        );
    }

    #[test]
    fn a_cursor_of_all_rooms_is_taken_apart() {
        let mut subscription = of(&["a", "b", "c"], Some("Epoch000.1~-~"), None);
        let joins = joins(&mut subscription);
        assert!(joins[0].contains("Epoch000.1") && !joins[1].contains("since") && !joins[2].contains("since"));
        let wrong = Subscription::new(vec!["a".to_owned()], Some("x.1~y.2"), None).unwrap_err();
        assert_eq!(wrong.code, EXIT_CONFIG);
    }

    #[test]
    fn close_codes_that_forbid_it_are_not_followed_by_a_reconnect() {
        for code in [1009, 4400, 4401, 4403, 4408, 4429, 4499] {
            assert!(matches!(of(&["a"], None, None).closed(Some(code), "no"), Step::Over(_)), "{code}");
        }
        for code in [None, Some(1000), Some(1001), Some(1006), Some(1012), Some(1013), Some(4500), Some(4508)] {
            let step = of(&["a"], None, None).closed(code, "away");
            assert!(matches!(step, Step::Reconnect { after: None, .. }), "{code:?}");
        }
    }

    #[test]
    fn a_reconnect_frame_sets_the_wait_of_the_next_close_only() {
        let mut subscription = of(&["a"], None, None);
        subscription.frame(r#"{"type":"reconnect","after_ms":1500,"reason":"draining"}"#);
        let step = subscription.closed(Some(1012), "draining");
        let expected =
            Step::Reconnect { after: Some(Duration::from_millis(1500)), why: "closed with 1012 draining".into() };
        assert_eq!(step, expected);
        assert!(matches!(subscription.closed(None, "gone"), Step::Reconnect { after: None, .. }));
    }

    #[test]
    fn it_is_over_when_no_room_is_left() {
        let mut subscription = of(&["a", "b"], None, None);
        let refused = r#"{"type":"error","room":"a","code":"room_invalid","message":"no","retryable":false}"#;
        assert_eq!(subscription.frame(refused), Step::Note("a: room_invalid: no".to_owned()));
        assert_eq!(joins(&mut subscription).len(), 1);
        let later = r#"{"type":"error","room":"b","code":"draining","message":"","retryable":true,"retry_after_ms":9}"#;
        assert!(matches!(subscription.frame(later), Step::Reconnect { after: Some(_), .. }));
        assert_eq!(
            subscription.frame(r#"{"type":"left","room":"b","reason":"kicked"}"#),
            Step::Over("b: kicked".to_owned())
        );
    }

    #[test]
    fn a_stranger_is_left_and_unknown_frames_are_not_minded() {
        assert!(matches!(of(&["a"], None, None).frame("hello"), Step::Over(_)));
        assert_eq!(of(&["a"], None, None).frame(r#"{"type":"novelty","x":1}"#), Step::Nothing);
    }
}
