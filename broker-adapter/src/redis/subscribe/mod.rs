//! Everything that this node receives from one master, over a few subscriber connections. A room belongs to one of
//! them, by its partition.
//!
//! - `interest.rs`: which rooms a connection follows, and what is to be sent over it next; without I/O.
//! - `connection.rs`: the connection as the broker sees it: follow a room, leave it, read its head; hands what Redis
//!   pushes to the subscribers.
//! - `driver.rs`: sends the commands.

pub(crate) mod connection;
pub(crate) mod driver;
pub(crate) mod interest;
