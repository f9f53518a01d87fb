//! Headers that every response gets, whether the API or a transport made it: those that let pages of other origins read
//! it, and `Connection: close` while the node drains.

use super::problem;
use crate::node::Node;
use hyper::{
    Response,
    header::{self, HeaderValue},
};
use std::sync::Arc;

/// Adds what every response to one request gets.
#[derive(Clone)]
pub(crate) struct Finish {
    /// The origin of the page that asks, once it has been checked.
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
