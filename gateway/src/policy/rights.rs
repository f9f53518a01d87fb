//! Who a client is and what it may do. This version is open: everybody is anonymous and may do everything; the
//! checks stand where rights will be asked, so that a way to have rights changes this module and no other.

use crate::protocol::error::Refusal;
use fanfare_broker::{Room, User};

/// A client that has said who it is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) user: Option<User>,
}

/// What can be permitted in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Join,
    Publish,
    History,
    Presence,
    /// Occupancy and lists of rooms.
    Read,
    /// Kicking and disconnecting.
    Administer,
}

/// Whether `identity` (`None`: anonymous) may do `act` in `room`.
///
/// # Errors
/// The refusal to send; open mode has none.
pub(crate) fn permit(_identity: Option<&Identity>, _act: Act, _room: &Room) -> Result<(), Refusal> {
    Ok(())
}

/// Whether `identity` may do `act` in the whole cluster.
///
/// # Errors
/// As [`permit`].
pub(crate) fn permit_everywhere(_identity: Option<&Identity>, _act: Act) -> Result<(), Refusal> {
    Ok(())
}
