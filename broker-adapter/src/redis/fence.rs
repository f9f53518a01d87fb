//! `Fence`: names the Redis memory that gave out a room's offsets. Stored with each room and compared before an offset
//! is used, so that offsets of a lost memory are never continued.

/// The first characters of a server's `run_id`, which every restart and failover changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Fence(String);

impl Fence {
    /// Takes 16 of the 40 hexadecimal digits: enough to distinguish memories, and every room's meta holds a copy.
    pub(crate) fn new(run_id: &str) -> Self {
        Self(run_id.chars().take(16).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
