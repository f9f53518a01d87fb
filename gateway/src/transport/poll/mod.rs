//! Long and short polling: a request for the messages after its cursors, answered at once or within some time. The cursor
//! is the acknowledgement: the node keeps nothing for a poll and forgets nothing when it has answered one. So a lost
//! answer, two polls at the same time, and a poll at another node need no care of their own.

mod answer;
mod look;
mod wait;

pub(super) use look::Poll;
pub(super) use wait::{Prepared, Ready, prepare};
