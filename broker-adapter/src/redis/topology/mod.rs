//! Finds the masters: a single server, the master that sentinels name, or the masters of a cluster. Connects to
//! sentinels and to cluster members, for short questions only.

pub(crate) mod cluster;
pub(crate) mod query;
pub(crate) mod target;
