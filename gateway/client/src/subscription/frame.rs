//! The server's frames as JSON: the fields that `rooms` and `poll` act on. Unknown fields are ignored, as the protocol asks.

use serde::Deserialize;

/// The fields of all frames that matter here.
#[derive(Deserialize)]
pub(super) struct Frame {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) id: Option<usize>,
    pub(super) room: Option<String>,
    pub(super) cursor: Option<String>,
    pub(super) to: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) code: Option<Code>,
    pub(super) message: Option<String>,
    pub(super) resumed: Option<bool>,
    pub(super) gap: Option<Gap>,
    pub(super) retryable: Option<bool>,
    pub(super) reconnect: Option<bool>,
    pub(super) after_ms: Option<u64>,
    pub(super) retry_after_ms: Option<u64>,
    pub(super) ping_ms: Option<u64>,
}

/// The code of an `error` is a word, the code of a `close` a number.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Code {
    Close(u16),
    Error(String),
}

/// How many messages are missing at a gap; `None` where the server cannot know.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Gap {
    pub(super) missed: Option<u64>,
}

impl Gap {
    /// The gap after `from`, the last message that a client has, up to `to`. Offsets of two epochs do not compare.
    pub(super) fn between(from: Option<&str>, to: &str) -> Self {
        let offset_after = |(epoch, offset): (&str, &str)| {
            let from = from?.strip_prefix(epoch)?.strip_prefix('.')?;
            offset.parse::<u64>().ok()?.checked_sub(from.parse().ok()?)
        };
        Self { missed: to.rsplit_once('.').and_then(offset_after) }
    }

    /// For the user. `to` is the cursor at which the room goes on; a room without history has none.
    pub(super) fn text(self, to: Option<&str>) -> String {
        match (self.missed, to) {
            (Some(1), _) => "1 message is missing".to_owned(),
            (Some(missed), _) => format!("{missed} messages are missing"),
            (None, Some(_)) => "messages may be missing (a new epoch: nobody knows how many)".to_owned(),
            (None, None) => "messages may be missing (the room keeps no history)".to_owned(),
        }
    }
}
