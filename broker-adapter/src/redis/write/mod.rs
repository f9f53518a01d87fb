//! Everything that this node writes to one master: commands wait in one queue (`publisher.rs`), are packed into calls
//! (`batch.rs`) and sent in pipelines over one connection (`driver.rs`).

pub(crate) mod batch;
pub(crate) mod command;
pub(crate) mod driver;
pub(crate) mod publisher;
