//! The limits an operator may set. The file's `[limits]` section fills it; sessions, outboxes, the acceptor and the
//! HTTP interface read it. It holds numbers only: what happens at a limit is decided where the limit is met.

use std::time::Duration;

/// A WebSocket frame may be so much larger than the message limit before it ends the session, and a published body than
/// its data: room for the other fields.
pub(crate) const ENVELOPE_BYTES: usize = 4096;

/// How much one client, one address and the whole node may use. Every field is in the unit its name ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The largest `data` of one message.
    pub message_bytes: usize,
    /// Rooms that one session may be in at a time.
    pub rooms_per_session: usize,
    /// Publishes per session (over HTTP: per user or key) and second, with bursts of twice that. 0: no limit.
    pub publishes_per_second: u32,
    /// Connections from one client address. 0: no limit.
    pub connections_per_ip: u32,
    /// Connections that the node takes per second, with bursts of twice that; others wait in the kernel. 0: no limit.
    pub accepts_per_second: u32,
    /// What may wait for one client to read.
    pub outbox_bytes: usize,
    /// How many messages may wait for one client to read.
    pub outbox_messages: usize,
    /// How long the oldest one may wait before the client counts as too slow.
    pub outbox_age: Duration,
    /// What may wait for all clients of this node together; the fullest outbox goes first. 0: no limit.
    pub outbox_total_bytes: usize,
    /// Time between two WebSocket pings to one client, before jitter.
    pub ping_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 64 << 10,
            rooms_per_session: 128,
            publishes_per_second: 50,
            connections_per_ip: 0,
            accepts_per_second: 0,
            outbox_bytes: 256 << 10,
            outbox_messages: 1024,
            outbox_age: Duration::from_secs(5),
            outbox_total_bytes: 256 << 20,
            ping_interval: Duration::from_secs(25),
        }
    }
}
