//! Protocols: pure codecs between bytes and `Command`/`Event`, and the shapes in which one message is encoded once for
//! many. A codec does no I/O and knows no session.

mod frame;
pub(crate) mod json;
pub(crate) mod native;

pub(crate) use frame::{FrameShape, control_frame, end_event, name_event, put_frame};
