//! Everything that this node writes to one master, in order, in pipelines.

pub(crate) mod batch;
pub(crate) mod publisher;
