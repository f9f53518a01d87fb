//! What a load run is asked to do: the values of the command's flags and the limits on them. The command line fills it in,
//! the run reads it. It touches nothing outside.

use super::stamp;
use crate::Token;
use std::{net::IpAddr, ops::RangeInclusive};

/// The largest data of one message, in bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// A load run.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The gateway's nodes; members are spread over them.
    pub(crate) urls: Vec<String>,
    /// The node that the publishers use; the first one without it.
    pub(crate) publish_url: Option<String>,
    /// Who all sessions are.
    pub(crate) token: Option<Token>,
    /// Sessions that each join one room; without any, publishes are measured alone.
    pub(crate) members: usize,
    /// Rooms; members are spread over them.
    pub(crate) rooms: usize,
    /// Their names but for the number.
    pub(crate) room_prefix: String,
    /// Publisher sessions; without any, the run counts what another one publishes.
    pub(crate) publishers: usize,
    /// How fast to publish.
    pub(crate) pace: Pace,
    /// The size of one message's data, in bytes.
    pub(crate) payload_bytes: usize,
    /// How long to publish.
    pub(crate) seconds: f64,
    /// How long to do nothing between joining and publishing.
    pub(crate) idle_seconds: f64,
    /// Connections to begin in a second; as fast as they are accepted without it.
    pub(crate) connects_per_second: Option<u32>,
    /// Local addresses to connect from in turn: each has some 28,000 ports, and past half of them finding one takes long.
    pub(crate) from: Vec<IpAddr>,
    /// Processes whose cost is measured.
    pub(crate) pids: Vec<u32>,
    /// How the report is printed.
    pub(crate) format: Format,
    /// Whether a line on standard error says every second how it goes, also where that is no terminal.
    pub(crate) progress: bool,
}

/// How fast to publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Open loop: so many messages a second by the clock, all rooms together, whatever becomes of the earlier ones.
    /// Latency counts from the time by the clock.
    Rate(f64),
    /// Closed loop: so many messages on their way at most. One is on its way until every member of its room has it or, in
    /// a room without members, until it is acknowledged.
    InFlight(usize),
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A table.
    Text,
    /// One JSON object; the fields are those of `super::report::Report`.
    Json,
}

impl Bench {
    /// The limits that flags cannot say by themselves.
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
        if !matches!(self.pace, Pace::Rate(rate) if (0.001..=1e7).contains(&rate)) && matches!(self.pace, Pace::Rate(_))
        {
            return Err("--rate: 0.001 to 10000000 messages a second".to_owned());
        }
        for (name, seconds) in [("seconds", self.seconds), ("idle", self.idle_seconds)] {
            if !(0.0..=1e6).contains(&seconds) {
                return Err(format!("--{name}: 0 to 1000000 seconds"));
            }
        }
        // A room's messages come from one session, so that their order is known; more sessions than rooms have no work.
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
}
