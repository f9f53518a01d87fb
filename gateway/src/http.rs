//! What the responses of `api` and `transport` have in common: JSON, problem documents (RFC 9457), the headers of CORS
//! and of a drain, and the head as bytes.

use crate::{
    node::Node,
    protocol::error::{ErrorCode, Refusal},
};
use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::{BufMut as _, BytesMut};
use serde::Serialize;
use std::{sync::Arc, time::SystemTime};

#[derive(Serialize)]
struct Problem<'a> {
    title: &'static str,
    status: u16,
    code: ErrorCode,
    detail: &'a str,
    retryable: bool,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        problem(&self)
    }
}

pub(crate) fn problem(refusal: &Refusal) -> Response<Body> {
    let code = refusal.code;
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let document = Problem {
        title: status.canonical_reason().unwrap_or_default(),
        status: code.status(),
        code,
        detail: &refusal.message,
        retryable: code.retryable(),
    };
    let mut response = json(status, serde_json::to_vec(&document).unwrap_or_default());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(ms) = refusal.retry_after_ms {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    response
}

/// A JSON document as a response. It ends with a newline, so that the prompt of a terminal begins a line after it.
pub(crate) fn json(status: StatusCode, mut body: Vec<u8>) -> Response<Body> {
    body.push(b'\n');
    (status, [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

pub(crate) fn respond(value: &impl Serialize) -> Response<Body> {
    json(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default())
}

/// The request did not come in in time. The connection ends with the response, since the rest may still come.
pub(crate) fn too_slow() -> Response<Body> {
    let refusal = Refusal::bad_request("the request did not come in within 10 seconds");
    ([(header::CONNECTION, "close")], problem(&refusal)).into_response()
}

/// 405, with the methods that the path takes.
pub(crate) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let refusal = Refusal::new(ErrorCode::MethodNotAllowed, format!("this path takes {allowed}"));
    ([(header::ALLOW, allowed)], problem(&refusal)).into_response()
}

/// The response to a preflight (Fetch standard, CORS protocol) whose origin is allowed.
pub(crate) fn preflight() -> Response<Body> {
    let headers = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID";
    let allowed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, headers),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, allowed).into_response()
}

/// Adds what every response to one request gets, whether the API or a transport made it: the headers that let pages of
/// an allowed origin read it, and `Connection: close` while the node drains.
#[derive(Clone)]
pub(crate) struct Finish {
    /// The origin of the page that asks, once it has been checked.
    pub(crate) origin: Option<HeaderValue>,
    pub(crate) node: Arc<Node>,
}

impl Finish {
    pub(crate) fn response<T>(&self, mut response: Response<T>) -> Response<T> {
        if let Some(origin) = &self.origin {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag, Retry-After"));
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if self.node.drain.is_draining() {
            response.headers_mut().entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
        }
        response
    }
}

/// The head of an HTTP/1.1 response as bytes (RFC 9112 section 4), for sockets that have left hyper: status line,
/// headers, `Date`, and the empty line.
pub(crate) fn response_head<T>(response: &Response<T>) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    out.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in response.headers() {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    let date = httpdate::fmt_http_date(SystemTime::now());
    out.put_slice(format!("date: {date}\r\n\r\n").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_lines_and_an_empty_one() {
        let response = Response::builder().status(200).header("x-a", "b").body(()).unwrap();
        let text = String::from_utf8(response_head(&response).to_vec()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nx-a: b\r\ndate: "), "{text}");
        assert!(text.ends_with(" GMT\r\n\r\n"), "{text}");
    }
}
