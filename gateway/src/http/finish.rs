//! What every response to a request gets, whoever made it: the headers for pages of other origins, and `Connection: close`
//! while the node drains.

use super::problem;
use crate::node::Node;
use hyper::{
    Response,
    header::{self, HeaderValue},
};
use std::sync::Arc;

/// What all responses to a request get.
#[derive(Clone)]
pub(crate) struct Finish {
    /// The page that asks, whose origin has been checked.
    pub(crate) origin: Option<HeaderValue>,
    pub(crate) node: Arc<Node>,
}

impl Finish {
    pub(crate) fn response<T>(&self, mut response: Response<T>) -> Response<T> {
        if let Some(origin) = &self.origin {
            problem::allow_origin(response.headers_mut(), origin.clone());
        }
        if self.node.drain.is_draining() {
            response.headers_mut().entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
        }
        response
    }
}
