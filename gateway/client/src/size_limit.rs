//! The largest item that the commands read from a server.

use std::fmt;

/// The largest frame, event, line or response that is read, in bytes: 16 times the largest message that a gateway can be
/// configured for (1 MiB), because lists of messages and of members are single frames too.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// The server sent an item of more than [`FRAME_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server sent more than {FRAME_BYTES_MAX} bytes in one piece")
    }
}
