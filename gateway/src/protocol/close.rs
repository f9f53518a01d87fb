//! The table of reasons for which a session ends: the close code on the wire, its text, and the label in metrics. No other
//! file makes close codes.

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CloseReason {
    /// The client closed the connection, or the connection broke.
    Gone,
    /// A frame was more than 4 KiB larger than the message limit.
    FrameTooLarge,
    /// The node drains; the client resumes elsewhere.
    Draining,
    /// The client does not speak the native protocol: bad JSON, JSON that is not an object, a binary frame.
    NotOurProtocol,
    /// A WebSocket fault (RFC 6455 section 7.4.1, code 1002).
    WebSocketFault,
    /// Text that is not UTF-8 (RFC 6455 section 8.1, code 1007).
    NotUtf8,
    /// An operator disconnected the user.
    Kicked,
    /// Too many errors in a short time.
    TooManyErrors,
    /// The client did not answer a ping.
    Silent,
    /// The outbox overflowed.
    TooSlow,
    /// A stream reached its maximum age; its client opens the next one.
    Aged,
}

impl CloseReason {
    /// The table: every reason, for tests and metrics.
    pub(crate) const ALL: [Self; 11] = [
        Self::Gone,
        Self::FrameTooLarge,
        Self::Draining,
        Self::NotOurProtocol,
        Self::WebSocketFault,
        Self::NotUtf8,
        Self::Kicked,
        Self::TooManyErrors,
        Self::Silent,
        Self::TooSlow,
        Self::Aged,
    ];

    /// A row of the table: code, text of the close frame, label. 1009 and 4400–4499 mean "do not reconnect".
    const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Gone => (1000, "", "gone"),
            Self::FrameTooLarge => (1009, "message too large", "frame_too_large"),
            Self::Draining => (1012, "draining", "draining"),
            Self::NotOurProtocol => (4400, "not our protocol", "not_our_protocol"),
            Self::WebSocketFault => (1002, "protocol error", "websocket_fault"),
            Self::NotUtf8 => (1007, "not utf-8", "not_utf8"),
            Self::Kicked => (4403, "kicked", "kicked"),
            Self::TooManyErrors => (4429, "too many errors", "too_many_errors"),
            Self::Silent => (1001, "no sign of life", "silent"),
            Self::TooSlow => (4508, "too slow", "too_slow"),
            Self::Aged => (1001, "stream ended by age", "aged"),
        }
    }

    pub(crate) const fn code(self) -> u16 {
        self.row().0
    }

    /// Whether the client may reconnect without a change.
    pub(crate) const fn reconnect(self) -> bool {
        !matches!(self.code(), 1009 | 4400..=4499)
    }

    pub(crate) const fn text(self) -> &'static str {
        self.row().1
    }

    pub(crate) const fn label(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_label_and_index() {
        let labels: std::collections::HashSet<_> = CloseReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}");
        }
    }
}
