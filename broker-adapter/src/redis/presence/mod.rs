//! Who is present. `roster.rs` remembers the sessions of this node, so that they reach Redis whatever happens to it;
//! `heartbeat.rs` reports that this node is alive, and removes the members of nodes that died.

pub(crate) mod heartbeat;
pub(crate) mod roster;
