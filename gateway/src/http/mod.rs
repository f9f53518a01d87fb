//! What HTTP responses share, whether the API or a transport gives them.

pub(crate) mod finish;
pub(crate) mod head;
pub(crate) mod problem;
