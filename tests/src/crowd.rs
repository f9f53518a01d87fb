//! Many members at once, and the rooms and configuration they need. Called by the sentences under load and the fault
//! runs; it never judges.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::load::Timing;
use crate::member::{BACKOFF, Member, Membership, TransportChoice};
use crate::target::Target;
use crate::transport::Transport;

/// Rooms that keep everything a test publishes, and publishers that may be fast.
pub const KEEP_ALL: &str = "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 20000, ttl = \"1h\" }\n\
                            [limits]\npublishes_per_second = 0\n";

/// How many members connect at a time: enough to be fast, few enough to stay below any backlog.
const AT_ONCE: usize = 100;

/// `room:0`, `room:1`, …
#[must_use]
pub fn rooms(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("room:{n}")).collect()
}

/// `count` members, each in one of the rooms, in turn.
pub async fn members(target: &Target, count: usize, rooms: &[String], timing: Option<&Arc<Timing>>) -> Vec<Member> {
    Crowd::of(target, rooms).members(count, timing).await
}

/// How the members of a crowd are alike.
#[derive(Clone, Copy, Debug)]
pub struct Crowd<'a> {
    /// Where they connect.
    pub target: &'a Target,
    /// Dealt in turn, one to each.
    pub rooms: &'a [String],
    /// See [`Membership::backoff`].
    pub backoff: Duration,
    /// See [`Membership::transports`].
    pub transports: TransportChoice,
}

impl<'a> Crowd<'a> {
    /// Over WebSockets, with the backoff of `fanfare sub`.
    #[must_use]
    pub fn of(target: &'a Target, rooms: &'a [String]) -> Self {
        Self { target, rooms, backoff: BACKOFF, transports: TransportChoice::Only(Transport::WebSocket) }
    }

    /// Starts so many and returns once all have joined.
    pub async fn members(&self, count: usize, timing: Option<&Arc<Timing>>) -> Vec<Member> {
        let rooms = self.rooms.len();
        let one = |index: usize| {
            Member::start(Membership {
                target: self.target.clone(),
                index,
                // One step further in each round, so that the members of a room are not all on the same node.
                rooms: vec![self.rooms[(index + index / rooms) % rooms].clone()],
                timing: timing.cloned(),
                backoff: self.backoff,
                transports: self.transports,
            })
        };
        stream::iter((0..count).map(one)).buffered(AT_ONCE).collect().await
    }
}
