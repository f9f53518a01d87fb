//! What a fault proxy can do to connections. Called by everything that sets a fault; values only.

use std::time::Duration;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connected to the server.
    ToServer,
    /// From the server to the side that connected.
    ToClient,
}

/// How the proxy treats connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Passes everything on at once.
    Healthy,
    /// Passes everything on later and in order.
    Delay {
        /// The shortest delay.
        least: Duration,
        /// The longest random time that is added to it, for each piece.
        jitter: Duration,
    },
    /// Passes nothing on in either direction. Connections stay open and continue where they were when the fault ends.
    Stall,
    /// Passes nothing on in this direction, not even the end of the connection; the other direction works.
    BlackHole(Direction),
    /// Passes this many bytes of each connection on, counted from now on in both directions together, then resets it.
    CutAfter(u64),
    /// Writes every byte separately.
    Chop,
    /// Resets all connections, and every new one.
    Reset,
}
