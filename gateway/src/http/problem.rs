//! Responses that `api` and `transport` share: JSON, problem documents (RFC 9457), and the headers of CORS.

use crate::protocol::error::{ErrorCode, Refusal};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;

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

/// The response that refuses a request.
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
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The request did not come in in time. The connection ends with the response, since the rest may still come.
pub(crate) fn too_slow() -> Response<Body> {
    let mut response = problem(&Refusal::bad_request("the request did not come in within 10 seconds"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// 405, with the methods that the path takes.
pub(crate) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = problem(&Refusal::new(ErrorCode::MethodNotAllowed, format!("this path takes {allowed}")));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The response to a preflight (Fetch standard, CORS protocol) whose origin is allowed.
pub(crate) fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets pages of an allowed origin read the response.
pub(crate) fn allow_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag, Retry-After"));
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}
