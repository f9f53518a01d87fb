//! What a load run is asked to do: the values of the flags of `fanfare bench`, and their limits.

use super::stamp;
use crate::connection::GatewayOptions;
use std::{net::IpAddr, ops::RangeInclusive};

/// The largest data of one message, in bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// A load run.
#[derive(Debug)]
pub(crate) struct BenchOptions {
    /// The gateway's nodes; members are spread over them.
    pub(crate) nodes: Vec<GatewayOptions>,
    /// The node that the publishers use; the first of `nodes` without it.
    pub(crate) publish_node: Option<GatewayOptions>,
    /// Sessions that each join one room; with none, only publishes are measured.
    pub(crate) members: usize,
    /// Rooms; members are spread over them.
    pub(crate) rooms: usize,
    /// The rooms' names without their number.
    pub(crate) room_prefix: String,
    /// Publisher sessions; with none, the run counts what another run publishes.
    pub(crate) publishers: usize,
    /// How fast to publish.
    pub(crate) pace: Pace,
    /// The size of one message's data, in bytes.
    pub(crate) payload_bytes: usize,
    /// How long to publish.
    pub(crate) seconds: f64,
    /// How long to do nothing between joining and publishing.
    pub(crate) idle_seconds: f64,
    /// How many connections to open per second; without it, as fast as they are accepted.
    pub(crate) connects_per_second: Option<u32>,
    /// Local addresses to connect from in turn: each has some 28,000 ports, and past half of them the kernel searches long
    /// for a free one.
    pub(crate) from: Vec<IpAddr>,
    /// The gateway's processes, whose CPU and memory are measured.
    pub(crate) pids: Vec<u32>,
    /// How the report is printed.
    pub(crate) format: Format,
    /// Whether the progress line is shown where standard error is not a terminal.
    pub(crate) progress: bool,
}

/// How fast to publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Open loop: this many messages a second by the clock, all rooms together, however long earlier messages take. Latency
    /// counts from the scheduled time.
    Rate(f64),
    /// Closed loop: at most this many messages in flight. A message is in flight until every member of its room has it or,
    /// in a room without members, until it is acknowledged.
    InFlight(usize),
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A table.
    Text,
    /// One JSON object with the fields of `Report`.
    Json,
}

impl BenchOptions {
    /// Checks the limits that the command line's own parsers do not know.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        const PAYLOAD: RangeInclusive<usize> = stamp::BYTES_MIN..=PAYLOAD_BYTES_MAX;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"{}\"\\`".contains(&byte);
        if !PAYLOAD.contains(&self.payload_bytes) {
            return Err(format!("--payload: {} to {} bytes", PAYLOAD.start(), PAYLOAD.end()));
        }
        if self.room_prefix.len() > 240 || !self.room_prefix.bytes().all(is_plain) {
            return Err("--room-prefix: at most 240 bytes of visible ASCII without { } \" \\ `".to_owned());
        }
        if matches!(self.pace, Pace::Rate(rate) if !(0.001..=1e7).contains(&rate)) {
            return Err("--rate: 0.001 to 10000000 messages a second".to_owned());
        }
        for (name, seconds) in [("seconds", self.seconds), ("idle", self.idle_seconds)] {
            if !(0.0..=1e6).contains(&seconds) {
                return Err(format!("--{name}: 0 to 1000000 seconds"));
            }
        }
        // One session publishes all messages of a room, so that their order is known: with more sessions than rooms, or
        // than messages in flight, the others would have nothing to do.
        self.publishers = self.publishers.min(self.rooms);
        if let Pace::InFlight(messages) = self.pace {
            self.publishers = self.publishers.min(messages);
        }
        Ok(self)
    }

    /// A room's name.
    pub(super) fn room(&self, index: usize) -> String {
        format!("{}{index}", self.room_prefix)
    }

    /// The local address for the connection `index`.
    pub(super) fn local_address(&self, index: usize) -> Option<IpAddr> {
        (!self.from.is_empty()).then(|| self.from[index % self.from.len()])
    }
}
