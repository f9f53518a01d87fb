//! What `fanfare sub` knows about its rooms: frames, cursors, poll responses and ends of connections go in, what to do comes
//! out. Every transport of `subscribe` drives it. There is no clock, socket or output in here, so that resuming is tested
//! without a server.

mod frame;
mod poll;
mod request;
mod rooms;

pub(crate) use request::PollRequest;
pub(crate) use rooms::{AFTER_MAX, Step, Subscription, unknown_protocol};

#[cfg(test)]
mod tests;
