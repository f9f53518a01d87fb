//! What the gateway sends to one client, independent of the transport. Messages are not events: they are encoded once
//! for all members of a room (`native::MessageText`).

use crate::protocol::{
    command::RequestId,
    error::{ErrorCode, Refusal},
};
use fanfare_broker::{Cursor, Member, SessionId, Who};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::{borrow::Cow, ops::Not};

/// One frame to one client. Names and order of the fields are those of the native protocol. A `None` field is left out.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    Welcome {
        #[serde(serialize_with = "text")]
        session: SessionId,
        node: &'a str,
        route: &'a str,
        /// The path to which a client without a sending connection posts its commands. It contains a secret.
        #[serde(skip_serializing_if = "Option::is_none")]
        post: Option<&'a str>,
        ping_ms: u64,
        limits: WelcomeLimits,
    },
    Joined {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        room: &'a str,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_text")]
        cursor: Option<Cursor>,
        #[serde(skip_serializing_if = "Option::is_none")]
        resumed: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        gap: Option<Missed>,
        #[serde(skip_serializing_if = "Option::is_none")]
        members: Option<Vec<MemberView<'a>>>,
        /// The list follows in `members` frames.
        #[serde(skip_serializing_if = "Not::not")]
        more: bool,
    },
    Left {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        room: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    Published {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        room: &'a str,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_text")]
        cursor: Option<Cursor>,
    },
    Presence {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        room: &'a str,
        count: u64,
        members: Vec<MemberView<'a>>,
        #[serde(skip_serializing_if = "Not::not")]
        more: bool,
    },
    /// A portion of a long list of members.
    Members {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        room: &'a str,
        members: Vec<MemberView<'a>>,
        #[serde(skip_serializing_if = "Not::not")]
        more: bool,
    },
    MemberJoined {
        room: &'a str,
        member: MemberView<'a>,
    },
    MemberLeft {
        room: &'a str,
        member: MemberView<'a>,
    },
    Gap {
        room: &'a str,
        #[serde(serialize_with = "text")]
        from: Cursor,
        #[serde(serialize_with = "text")]
        to: Cursor,
    },
    Reconnect {
        after_ms: u64,
        reason: &'static str,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
    },
    /// The heartbeat of a line stream, with the client's cursors in the rooms of its URL.
    Ping {
        cursor: &'a str,
    },
    /// Ends a stream, which has no close frame.
    Close {
        code: u16,
        reconnect: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        after_ms: Option<u64>,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: RequestId,
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<Cow<'a, str>>,
        code: ErrorCode,
        message: Cow<'a, str>,
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

impl<'a> Event<'a> {
    /// The reply to a refused request.
    pub(crate) fn refusal(id: RequestId, room: Option<Cow<'a, str>>, refusal: &Refusal) -> Self {
        Self::Error {
            id,
            room,
            code: refusal.code,
            message: refusal.message.clone(),
            retryable: refusal.code.retryable(),
            retry_after_ms: refusal.retry_after_ms,
        }
    }
}

/// The limits that a client has to know.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct WelcomeLimits {
    pub(crate) message_bytes: usize,
    pub(crate) rooms: usize,
}

/// How many messages are missing; `null` when the number cannot be known.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Missed {
    pub(crate) missed: Option<u64>,
}

/// A member as others see it.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView<'a> {
    user: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
}

impl<'a> MemberView<'a> {
    /// `info` is JSON text.
    pub(crate) fn new(who: &'a Who, sessions: Option<u32>, info: Option<&'a [u8]>) -> Self {
        let user = match who {
            Who::User(user) => Cow::Borrowed(user.as_str()),
            Who::Session(session) => Cow::Owned(session.to_string()),
        };
        Self { user, sessions, info: info.and_then(|json| serde_json::from_slice(json).ok()) }
    }
}

impl<'a> From<&'a Member> for MemberView<'a> {
    fn from(member: &'a Member) -> Self {
        Self::new(&member.who, Some(member.sessions), member.info.as_deref())
    }
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn optional_text<T: std::fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
