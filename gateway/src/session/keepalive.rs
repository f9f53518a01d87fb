//! Whether a peer is still there: when to ping, when to give up. Pure: one deadline per session, `now` from outside.

use crate::protocol::close::CloseReason;

/// How long a peer may stay silent after a ping, in milliseconds.
pub(crate) const PONG_MS: u32 = 10_000;

/// Times are milliseconds of the shard's clock, which wraps after 49 days; only differences are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keepalive {
    heard_ms: u32,
    pinged: bool,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing; look again after so many milliseconds.
    Later(u32),
    /// A ping; look again after [`PONG_MS`].
    Ping,
    /// The peer is gone.
    Close(CloseReason),
}

impl Keepalive {
    pub(crate) fn new(now_ms: u32) -> Self {
        Self { heard_ms: now_ms, pinged: false }
    }

    /// Any bytes from the peer are a sign of life.
    pub(crate) fn heard(&mut self, now_ms: u32) {
        *self = Self::new(now_ms);
    }

    /// A peer heard recently is not pinged: its next ping is due an interval after its last sign of life.
    pub(crate) fn check(&mut self, now_ms: u32, ping_ms: u32) -> Due {
        let silent = now_ms.wrapping_sub(self.heard_ms);
        let patience = if self.pinged { ping_ms + PONG_MS } else { ping_ms };
        if silent < patience {
            return Due::Later(patience - silent);
        }
        if self.pinged {
            return Due::Close(CloseReason::Silent);
        }
        self.pinged = true;
        Due::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_pinged_and_then_given_up() {
        let mut live = Keepalive::new(1000);
        assert_eq!(live.check(1000, 25_000), Due::Later(25_000));
        assert_eq!(live.check(26_000, 25_000), Due::Ping);
        assert_eq!(live.check(30_000, 25_000), Due::Later(6_000));
        assert_eq!(live.check(36_000, 25_000), Due::Close(CloseReason::Silent));
        live.heard(36_000);
        assert_eq!(live.check(40_000, 25_000), Due::Later(21_000), "a peer that was heard is not pinged");
    }
}
