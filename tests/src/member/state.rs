//! What a member is told, what it shares while it runs, and what it reports at its end. Called by `task` and by the
//! handle in `member`; these are values only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::transport_choice::TransportChoice;
use crate::history::{Cursor, MemberLog};
use crate::load::Timing;
use crate::target::Target;
use crate::transport::Transport;

/// The settings of a member.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Where it connects.
    pub target: Target,
    /// Its number, which chooses its address and names its log.
    pub index: usize,
    /// The rooms it joins.
    pub rooms: Vec<String>,
    /// The times at which publications were sent, if it has to log latencies.
    pub timing: Option<Arc<Timing>>,
    /// The upper bound of the random wait before the first attempt to reconnect, if the server gave no hint. It doubles
    /// with each attempt, up to one second or this value, whichever is longer.
    pub backoff: Duration,
    /// How it chooses its transports.
    pub transports: TransportChoice,
}

/// The upper bound of the wait of `fanfare sub` before its first attempt to reconnect.
pub const BACKOFF: Duration = Duration::from_millis(200);

/// What the handle tells a running member.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// How often the member was told to reset its connection.
    pub(super) resets: u64,
    pub(super) stop: bool,
}

/// What a member reports at its end.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The log for the history checker.
    pub log: MemberLog,
    /// The node of each of its connections, in order; empty for polls, whose responses do not name it.
    pub nodes: Vec<String>,
    /// The transport of each of its connections, in order.
    pub transports: Vec<Transport>,
    /// The close code of each of its connections, in order; `None` for one that just broke.
    pub closes: Vec<Option<u16>>,
    /// How many `reconnect` frames it received.
    pub reconnect_hints: usize,
    /// The time from sending to receiving of each message that was published on another node.
    pub latencies: Vec<Duration>,
    /// The times during which it was disconnected, in order.
    pub outages: Vec<Outage>,
    /// The times at which it was told of a gap.
    pub gaps: Vec<Instant>,
}

/// A time during which a member was disconnected.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// When the old connection ended.
    pub ended: Instant,
    /// When the new connection received `welcome`.
    pub welcome: Instant,
    /// When all rooms were joined again.
    pub joined: Instant,
}

impl Outage {
    /// From the end of the old connection until all rooms were joined again.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.joined - self.ended
    }
}

/// What can be read while a member runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The cursor that the member has reached in each room.
    pub(super) cursors: HashMap<String, Cursor>,
    pub(super) connections: usize,
    pub(super) gaps: usize,
    pub(super) last_message: Option<Instant>,
}

impl Progress {
    /// Whether the member has reached a cursor of a room, or one beyond it.
    pub(super) fn has_reached(&self, room: &str, cursor: &Cursor) -> bool {
        self.cursors.get(room).is_some_and(|now| now.epoch == cursor.epoch && now.offset >= cursor.offset)
    }
}

/// Locks what a member shares; after a panic in another thread the values are still of use.
pub(super) fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}
