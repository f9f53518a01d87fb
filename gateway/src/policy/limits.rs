//! The limits that an operator can set in the section `[limits]` of the configuration file. Numbers only: the code that meets
//! a limit decides what happens then.

use std::time::Duration;

/// How much larger than the message limit a WebSocket frame, or the body of a publish, may be: space for the other fields.
pub(crate) const ENVELOPE_BYTES: usize = 4096;

/// What one client, one address and the whole node may use. Each field is in the unit that its name ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The largest `data` of one message.
    pub message_bytes: usize,
    /// Rooms that one session may be in at the same time.
    pub rooms_per_session: usize,
    /// Publishes of one session per second, with bursts of twice as many. 0: no limit.
    pub publishes_per_second: u32,
    /// Connections from one client address. 0: no limit.
    pub connections_per_ip: u32,
    /// Connections that the node accepts per second, with bursts of twice as many; others wait in the kernel. 0: no limit.
    pub accepts_per_second: u32,
    /// Bytes that may wait for one client to read; 32 times as many if it shares them with other clients and reads.
    pub outbox_bytes: usize,
    /// Messages that may wait for one client to read; 32 times as many while it reads.
    pub outbox_messages: usize,
    /// How long a client may take nothing of what waits for it before it counts as too slow.
    pub outbox_age: Duration,
    /// Bytes of memory for what waits for all clients of this node; the client that has read nothing for longest is closed
    /// first. 0: no limit.
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
