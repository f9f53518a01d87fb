//! What the routes of the API share. Made by the router; handlers extract it.

use super::buffer::Buffer;
use crate::node::Node;
use axum::extract::FromRef;
use std::sync::Arc;

/// The node, and the publishes that wait for its backplane.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) node: Arc<Node>,
    /// Publishes with `?buffer=`.
    pub(super) buffer: Arc<Buffer>,
}

impl Api {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { buffer: Arc::new(Buffer::new(Arc::clone(&node.metrics))), node }
    }
}

impl FromRef<Api> for Arc<Node> {
    fn from_ref(api: &Api) -> Self {
        Self::clone(&api.node)
    }
}
