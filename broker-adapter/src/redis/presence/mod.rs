//! Who is present. `roster.rs` remembers the sessions of this node, so that they reach Redis even after it has failed
//! or forgotten them; `heartbeat.rs` reports that this node is alive; `sweep.rs` removes the members of nodes that died.

pub(crate) mod heartbeat;
pub(crate) mod roster;
pub(crate) mod sweep;
