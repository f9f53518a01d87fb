//! Who a client is and what it may do. This version is open: every client is anonymous and may do everything. The checks
//! are called wherever rights will be needed, so that adding rights changes this file only.

use crate::protocol::error::Refusal;
use fanfare_broker::{Room, User};

/// The identity of an authenticated client.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) user: Option<User>,
}

/// What a right permits in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Join,
    Publish,
    History,
    Presence,
    /// Read how many members a room has, and list rooms.
    Read,
    /// Kick members and disconnect users.
    Administer,
}

/// Whether `identity` (`None`: anonymous) may do `act` in `room`.
pub(crate) fn permit(_identity: Option<&Identity>, _act: Act, _room: &Room) -> Result<(), Refusal> {
    Ok(())
}

/// Whether `identity` may do `act` in the whole cluster.
pub(crate) fn permit_everywhere(_identity: Option<&Identity>, _act: Act) -> Result<(), Refusal> {
    Ok(())
}
