//! The wire, whatever carries it: what clients ask, what they are sent, what is refused and why a session ends; the pure
//! codecs between those and bytes; and the messages between nodes. Nothing here does I/O or knows a session.
//!
//! | file | |
//! |---|---|
//! | `command`, `event` | what a client asks; what it is sent |
//! | `error`, `close` | the tables of error codes and of close codes |
//! | `native`, `json` | the native protocol's codec |
//! | `frame` | the shapes in which a message is encoded once for many clients |
//! | `address` | secrets that let a client act as its session, and where its posted commands go |
//! | `control` | control messages between nodes and shards; the body of a post |

pub(crate) mod address;
pub(crate) mod close;
pub(crate) mod command;
pub(crate) mod control;
pub(crate) mod error;
pub(crate) mod event;
mod frame;
pub(crate) mod json;
pub(crate) mod native;

pub(crate) use frame::{FrameShape, control_frame, end_event, name_event, put_frame};
