//! Who is present: the members of this node (`roster`), and those of nodes that died (`heartbeat`).

pub(crate) mod heartbeat;
pub(crate) mod roster;
