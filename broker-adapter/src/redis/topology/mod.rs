//! Where the masters are: one server that never moves, as sentinels say, or as a cluster says. Connects to sentinels and to
//! cluster members for short questions only.

pub(crate) mod cluster;
pub(crate) mod events;
pub(crate) mod query;
pub(crate) mod sentinel;
pub(crate) mod target;
