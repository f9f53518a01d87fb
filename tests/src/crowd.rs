//! Many members at once, and the rooms and the configuration that they need. Called by the tests under load and the
//! fault runs, which judge what the members saw.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::load::Timing;
use crate::member::{BACKOFF, Member, Membership, TransportChoice};
use crate::target::Target;
use crate::transport::Transport;

/// A configuration whose rooms keep every message of a test, and whose publishers are not limited.
pub const KEEP_ALL: &str = "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 20000, ttl = \"1h\" }\n\
                            [limits]\npublishes_per_second = 0\n";

/// How many members connect at a time: enough to be fast, and few enough for the backlog of any listener.
const AT_ONCE: usize = 100;

/// `room:0`, `room:1`, …
#[must_use]
pub fn rooms(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("room:{n}")).collect()
}

/// Starts `count` WebSocket members, each in the next one of the rooms, and returns once all have joined.
pub async fn members(target: &Target, count: usize, rooms: &[String]) -> Vec<Member> {
    Crowd::of(target, rooms).members(count).await
}

/// The settings that all members of a crowd share.
#[derive(Clone, Copy, Debug)]
pub struct Crowd<'a> {
    /// Where they connect.
    pub target: &'a Target,
    /// Their rooms, one for each member in turn.
    pub rooms: &'a [String],
    /// See [`Membership::backoff`].
    pub backoff: Duration,
    /// See [`Membership::transports`].
    pub transports: TransportChoice,
    /// See [`Membership::timing`].
    pub timing: Option<&'a Arc<Timing>>,
}

impl<'a> Crowd<'a> {
    /// Members over WebSocket, with the backoff of `fanfare sub`.
    #[must_use]
    pub fn of(target: &'a Target, rooms: &'a [String]) -> Self {
        let transports = TransportChoice::Only(Transport::WebSocket);
        Self { target, rooms, backoff: BACKOFF, transports, timing: None }
    }

    /// Starts `count` members and returns once all have joined.
    pub async fn members(&self, count: usize) -> Vec<Member> {
        let rooms = self.rooms.len();
        let one = |index: usize| {
            Member::start(Membership {
                target: self.target.clone(),
                index,
                // Shifts by one room in each round, so that the members of a room are spread over the nodes.
                rooms: vec![self.rooms[(index + index / rooms) % rooms].clone()],
                timing: self.timing.cloned(),
                backoff: self.backoff,
                transports: self.transports,
            })
        };
        stream::iter((0..count).map(one)).buffered(AT_ONCE).collect().await
    }
}
