//! When to ping a client, and when to close its session. One deadline for each session; the time comes in as a
//! parameter.

/// How long a client may stay silent after a ping, in milliseconds.
pub(crate) const PONG_MS: u32 = 10_000;

/// When bytes last came from a client, and whether it has been pinged since. Times are milliseconds of the shard's
/// clock, which wraps after 49 days; only differences are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keepalive {
    heard_ms: u32,
    pinged: bool,
}

/// What has to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing; the next check is due after this many milliseconds.
    Later(u32),
    /// Send a ping; the next check is due after [`PONG_MS`].
    Ping,
    /// Close the session: the client did not answer.
    Close,
}

impl Keepalive {
    pub(crate) fn new(now_ms: u32) -> Self {
        Self { heard_ms: now_ms, pinged: false }
    }

    /// Notes that bytes came from the client. Any bytes count.
    pub(crate) fn heard(&mut self, now_ms: u32) {
        *self = Self::new(now_ms);
    }

    /// Decides what to do. A client that sent something recently is not pinged: the interval begins with its last
    /// bytes.
    pub(crate) fn check(&mut self, now_ms: u32, ping_ms: u32) -> Due {
        let silent = now_ms.wrapping_sub(self.heard_ms);
        let patience = if self.pinged { ping_ms + PONG_MS } else { ping_ms };
        if silent < patience {
            return Due::Later(patience - silent);
        }
        if self.pinged {
            return Due::Close;
        }
        self.pinged = true;
        Due::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let mut keepalive = Keepalive::new(1000);
        assert_eq!(keepalive.check(1000, 25_000), Due::Later(25_000));
        assert_eq!(keepalive.check(26_000, 25_000), Due::Ping);
        assert_eq!(keepalive.check(30_000, 25_000), Due::Later(6_000));
        assert_eq!(keepalive.check(36_000, 25_000), Due::Close);
        keepalive.heard(36_000);
        assert_eq!(keepalive.check(40_000, 25_000), Due::Later(21_000), "a client that was heard is not pinged");
    }
}
