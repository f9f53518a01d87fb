//! The table of error codes: the word on the wire, the HTTP status, and whether a retry can succeed. A [`Refusal`] is made
//! where a request is refused; `native` encodes it as a frame, `http` as a problem document.

use serde::Serialize;
use std::borrow::Cow;

/// The code of a refusal; its word on the wire is its name in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorCode {
    BadRequest,
    UnknownType,
    Unauthorized,
    Forbidden,
    RoomInvalid,
    RoomLimit,
    NotJoined,
    NotFound,
    MethodNotAllowed,
    MessageTooLarge,
    RateLimited,
    PresenceOff,
    HistoryOff,
    SessionGone,
    BackplaneUnavailable,
    BackplaneOverloaded,
    NotExecuted,
    TooSlow,
    Draining,
    Internal,
}

impl ErrorCode {
    /// A row of the table: HTTP status, whether the same request may succeed later.
    const fn row(self) -> (u16, bool) {
        match self {
            Self::BadRequest => (400, false),
            Self::UnknownType => (400, false),
            Self::Unauthorized => (401, false),
            Self::Forbidden => (403, false),
            Self::RoomInvalid => (400, false),
            Self::RoomLimit => (400, false),
            Self::NotJoined => (400, false),
            Self::NotFound => (404, false),
            Self::MethodNotAllowed => (405, false),
            Self::MessageTooLarge => (413, false),
            Self::RateLimited => (429, true),
            Self::PresenceOff => (400, false),
            Self::HistoryOff => (400, false),
            Self::SessionGone => (404, false),
            Self::BackplaneUnavailable => (503, true),
            Self::BackplaneOverloaded => (503, true),
            Self::NotExecuted => (503, true),
            Self::TooSlow => (503, true),
            Self::Draining => (503, true),
            Self::Internal => (500, true),
        }
    }

    pub(crate) const fn status(self) -> u16 {
        self.row().0
    }

    /// Whether the client caused the error, rather than the gateway or the backplane.
    pub(crate) const fn is_clients(self) -> bool {
        self.status() < 500
    }

    pub(crate) const fn retryable(self) -> bool {
        self.row().1
    }
}

/// Why a request is refused: a code for programs and a sentence for developers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: Cow<'static, str>,
    /// When a retry makes sense, in milliseconds from now.
    pub(crate) retry_after_ms: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// The room's class has no history.
    pub(crate) fn history_off() -> Self {
        Self::new(ErrorCode::HistoryOff, "this room keeps no history")
    }

    /// The room's class has no presence.
    pub(crate) fn presence_off() -> Self {
        Self::new(ErrorCode::PresenceOff, "members of this room do not see each other")
    }

    /// This node drains.
    pub(crate) fn draining() -> Self {
        Self::new(ErrorCode::Draining, "this node takes no new sessions").retry_after(1000)
    }

    /// The session that a request names has ended, or never existed.
    pub(crate) fn session_gone() -> Self {
        Self::new(ErrorCode::SessionGone, "there is no such session; open another one")
    }

    pub(crate) fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl From<fanfare_broker::RoomInvalid> for Refusal {
    fn from(why: fanfare_broker::RoomInvalid) -> Self {
        Self::new(ErrorCode::RoomInvalid, why.to_string())
    }
}

impl From<fanfare_broker::BrokerError> for Refusal {
    fn from(why: fanfare_broker::BrokerError) -> Self {
        use fanfare_broker::BrokerError as B;
        match why {
            B::Unavailable => {
                Self::new(ErrorCode::BackplaneUnavailable, "the backplane is away; retry with the same key")
                    .retry_after(1000)
            }
            B::Overloaded => {
                Self::new(ErrorCode::BackplaneOverloaded, "too much is waiting for the backplane").retry_after(500)
            }
            B::NotWritable => Self::new(
                ErrorCode::BackplaneUnavailable,
                "the backplane takes no writes at present; retry with the same key",
            )
            .retry_after(1000),
            B::Misconfigured => {
                Self::new(ErrorCode::BackplaneUnavailable, "the backplane refuses this node; its operator has to act")
                    .retry_after(1000)
            }
            B::HistoryOff => Self::history_off(),
            B::Protocol(text) => {
                tracing::error!(%text, "the backplane answered unexpectedly");
                Self::new(ErrorCode::Internal, "the backplane answered unexpectedly")
            }
        }
    }
}
