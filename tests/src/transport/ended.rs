//! How a connection ended, for every transport. Called by the clients; pure.

use std::time::Duration;

use serde::Deserialize;

use crate::http::Reply;

/// How a connection ended. Without a code the peer disappeared without saying why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The close code, or the status of a poll that was refused.
    pub code: Option<u16>,
    /// Whether the client should reconnect, if the server said so.
    pub reconnect: Option<bool>,
    /// The time after which the client should reconnect, if the server said so.
    pub reconnect_after: Option<Duration>,
    /// The text beside the code, or the error that ended the connection.
    pub reason: String,
}

/// The `close` frame, the last one of SSE and of HTTP streaming.
#[derive(Deserialize)]
struct Close {
    code: u16,
    reconnect: bool,
    after_ms: Option<u64>,
}

impl Ended {
    pub(super) fn network(error: impl std::fmt::Display) -> Self {
        Self { reason: error.to_string(), ..Self::default() }
    }

    pub(super) fn refused(reply: &Reply) -> Self {
        let reconnect_after = reply.retry_after();
        Self {
            code: Some(reply.status),
            reconnect: Some(reconnect_after.is_some()),
            reconnect_after,
            reason: reply.text.clone(),
        }
    }

    /// What a `close` frame announces.
    pub(super) fn announced(text: &str) -> Self {
        let close: Close = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let reconnect_after = close.after_ms.map(Duration::from_millis);
        Self { code: Some(close.code), reconnect: Some(close.reconnect), reconnect_after, reason: String::new() }
    }
}
