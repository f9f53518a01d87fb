//! Everything that this node receives from one master, over a few subscriber connections. A room belongs to one of
//! them, by its partition.

pub(crate) mod connection;
pub(crate) mod driver;
pub(crate) mod interest;
