//! What this node receives from one master: which rooms it follows, and over which connection.

pub(crate) mod channels;
pub(crate) mod connection;
pub(crate) mod interest;
