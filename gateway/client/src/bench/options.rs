//! What a load run is asked to do: the flags of `fanfare bench`, and their limits.

use super::stamp;
use crate::connection::GatewayOptions;
use clap::{Args, builder::TypedValueParser, value_parser};
use std::{net::IpAddr, ops::RangeInclusive};

/// The largest data of one message, in bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// The flags of `fanfare bench`.
#[derive(Debug, Args)]
#[command(mut_arg("url", |url| url.help("The gateway; several nodes, separated by commas, share the members")))]
pub(crate) struct BenchOptions {
    #[command(flatten)]
    gateway: GatewayOptions,
    /// The node that the publishers use [default: the first of --url].
    #[arg(long, value_name = "URL")]
    publish_url: Option<String>,
    /// The transport of the members.
    #[arg(long, value_name = "NAME", default_value = "ws", value_parser = ["ws"])]
    pub(crate) transport: String,
    /// Sessions that each join one room.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count())]
    pub(crate) members: usize,
    /// Rooms, which the members and the messages take in turn.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count())]
    pub(crate) rooms: usize,
    /// The rooms' names without their number.
    #[arg(long, value_name = "TEXT", default_value = "bench:")]
    room_prefix: String,
    /// Publish this many messages a second, all rooms together; latency counts from the scheduled time.
    #[arg(long, value_name = "MSG/S", conflicts_with = "in_flight")]
    pub(crate) rate: Option<f64>,
    /// Publish as fast as this many messages in flight allow; a message is in flight until all members of its room have it.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count())]
    in_flight: usize,
    /// Publisher sessions, which share the rooms; 0: only count what another run publishes.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u64).range(..=10_000).map(|n| n as usize))]
    pub(crate) publishers: usize,
    /// No members: measure acknowledged publishes.
    #[arg(long, conflicts_with = "members")]
    publish_only: bool,
    /// Size of a message's data, in bytes.
    #[arg(long = "payload", value_name = "N", default_value = "128", value_parser = count())]
    pub(crate) payload_bytes: usize,
    /// How long to publish.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub(crate) seconds: f64,
    /// How long to do nothing between joining and publishing; the gateway's CPU in this time is reported.
    #[arg(long = "idle", value_name = "SECONDS", default_value = "0")]
    pub(crate) idle_seconds: f64,
    /// Connections to open per second [default: as fast as they are accepted].
    #[arg(long = "connect-rate", value_name = "N", value_parser = count())]
    pub(crate) connects_per_second: Option<usize>,
    /// Local addresses to connect from in turn: each has 28,000 ports, and past half of them finding one takes long.
    #[arg(long, value_name = "IP,IP", value_delimiter = ',')]
    pub(crate) from: Vec<IpAddr>,
    /// The gateway's processes on this machine, to report their CPU and memory.
    #[arg(long, value_name = "PID,PID", value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// Show the progress line also where standard error is not a terminal.
    #[arg(long)]
    pub(crate) progress: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How fast to publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LoadModel {
    /// Open loop: this many messages a second by the clock, however long earlier messages take.
    Rate(f64),
    /// Closed loop: at most this many messages in flight. A message is in flight until every member of its room has it or,
    /// in a room without members, until it is acknowledged.
    InFlight(usize),
}

fn count() -> impl TypedValueParser<Value = usize> {
    value_parser!(u64).range(1..=10_000_000).map(|n| n as usize)
}

impl BenchOptions {
    /// Checks the limits that the command line's own parsers do not know.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        const PAYLOAD: RangeInclusive<usize> = stamp::BYTES_MIN..=PAYLOAD_BYTES_MAX;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"{}\"\\`".contains(&byte);
        if !PAYLOAD.contains(&self.payload_bytes) {
            return Err(format!("--payload: {} to {} bytes", PAYLOAD.start(), PAYLOAD.end()));
        }
        if self.room_prefix.len() > 240 || !self.room_prefix.bytes().all(is_plain) {
            return Err("--room-prefix: at most 240 bytes of visible ASCII without { } \" \\ `".to_owned());
        }
        if self.rate.is_some_and(|rate| !(0.001..=1e7).contains(&rate)) {
            return Err("--rate: 0.001 to 10000000 messages a second".to_owned());
        }
        for (name, seconds) in [("seconds", self.seconds), ("idle", self.idle_seconds)] {
            if !(0.0..=1e6).contains(&seconds) {
                return Err(format!("--{name}: 0 to 1000000 seconds"));
            }
        }
        if self.publish_only {
            self.members = 0;
        }
        // One session publishes all messages of a room, so that their order is known: with more sessions than rooms, or
        // than messages in flight, the others would have nothing to do.
        self.publishers = self.publishers.min(self.rooms);
        if let LoadModel::InFlight(messages) = self.pace() {
            self.publishers = self.publishers.min(messages);
        }
        Ok(self)
    }

    /// How fast to publish.
    pub(super) fn pace(&self) -> LoadModel {
        self.rate.map_or(LoadModel::InFlight(self.in_flight), LoadModel::Rate)
    }

    /// The gateway's nodes; members are spread over them.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = GatewayOptions> {
        self.gateway.url.split(',').map(|url| self.node(url))
    }

    /// The node that the publishers use, if it is not the first.
    pub(super) fn publish_node(&self) -> Option<GatewayOptions> {
        self.publish_url.as_deref().map(|url| self.node(url))
    }

    fn node(&self, url: &str) -> GatewayOptions {
        let mut node = self.gateway.clone();
        url.clone_into(&mut node.url);
        node
    }

    pub(super) fn room(&self, index: usize) -> String {
        format!("{}{index}", self.room_prefix)
    }

    pub(super) fn local_address(&self, index: usize) -> Option<IpAddr> {
        (!self.from.is_empty()).then(|| self.from[index % self.from.len()])
    }
}

#[cfg(test)]
impl BenchOptions {
    /// The options of a command line.
    pub(super) fn of(flags: &str) -> Self {
        use clap::FromArgMatches as _;
        let matches =
            Self::augment_args(clap::Command::new("bench").no_binary_name(true)).get_matches_from(flags.split(' '));
        Self::from_arg_matches(&matches).expect("valid flags").checked().expect("valid values")
    }
}
