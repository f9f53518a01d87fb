//! HTTP responses that `api` and `transport` have in common.

pub(crate) mod finish;
pub(crate) mod head;
pub(crate) mod problem;
