//! One connection to Redis, and the task that keeps it open.
//!
//! - `supervisor.rs` judges the connection: a state machine without I/O.
//! - `status.rs` is what other tasks see of it, and what its driver reports.
//! - `open.rs` connects and makes sure that the server is a master.
//! - `keep.rs` does what the supervisor says, and lets a `Driver` use the connection.

pub(crate) mod keep;
pub(crate) mod open;
pub(crate) mod status;
pub(crate) mod supervisor;
