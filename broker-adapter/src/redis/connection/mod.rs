//! One connection to Redis, and the task (`keep.rs`) that keeps it open.

pub(crate) mod keep;
pub(crate) mod open;
pub(crate) mod status;
pub(crate) mod supervisor;
