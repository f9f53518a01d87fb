//! One connection to Redis: whether it is usable (`supervisor`), and the task that keeps it open (`keep`).

pub(crate) mod keep;
pub(crate) mod supervisor;
