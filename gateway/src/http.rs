//! What `api`, `transport` and the admin port have in common: the rule about `Host`, and of responses JSON, problem
//! documents (RFC 9457), the headers of CORS and of connections, and the head as bytes.

use crate::{
    node::drain::Drain,
    protocol::error::{ErrorCode, Refusal},
};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header},
    response::IntoResponse,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use std::{
    net::Ipv6Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a connection may be idle before it is closed. nginx ends its own after 4 s, so that it sends no request while
/// this node ends the connection; other clients are told by `Keep-Alive` (RFC 2068 section 19.7.1.1).
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(5);
const KEEP_ALIVE: (&str, HeaderValue) = ("keep-alive", HeaderValue::from_static("timeout=5"));

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
    json_bytes(status, body.into())
}

/// A JSON document that ends with a newline, as a response.
pub(crate) fn json_bytes(status: StatusCode, body: Bytes) -> Response<Body> {
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

/// The response to a preflight (Fetch standard, CORS protocol) whose origin is allowed. Pages of that origin may send the
/// headers that they ask for, whatever they are: tracing tools add their own to every request (`traceparent`, `baggage`,
/// `sentry-trace`), and no header gives a caller more rights here.
pub(crate) fn preflight(asked: &HeaderMap) -> Response<Body> {
    let usual = HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID");
    let headers = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(usual);
    let allowed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, headers),
        (header::VARY, HeaderValue::from_static("Access-Control-Request-Headers")),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ];
    (StatusCode::NO_CONTENT, allowed).into_response()
}

/// The response to OPTIONS of a caller that is no page (RFC 9110 section 9.3.7). HAProxy's `option httpchk` asks this way
/// whether a server is well.
pub(crate) fn options() -> Response<Body> {
    (StatusCode::NO_CONTENT, [(header::ALLOW, "GET, POST, DELETE, OPTIONS")]).into_response()
}

/// Refuses what RFC 9112 section 3.2 demands to refuse: a request of HTTP/1.1 has exactly one `Host`, with a valid
/// value; an older one may have none.
pub(crate) fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let is_valid = match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => is_host(host),
        (Some(_), Some(_)) => false,
    };
    if is_valid { Ok(()) } else { Err(Refusal::bad_request("the request has no valid Host header, or several")) }
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2, RFC 3986 section 3.2); empty where the target has no authority. The
/// `http` crate's `Authority` takes any text between brackets, and no percent-encoded name.
fn is_host(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let (is_valid, port) = match text.strip_prefix('[').map(|literal| literal.split_once(']')) {
        Some(Some((literal, port))) => (is_ip_literal(literal), port),
        Some(None) => return false,
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_registered_name(name), port)
        }
    };
    is_valid && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// The host between brackets: an IPv6 address, or one of a version to come.
fn is_ip_literal(text: &str) -> bool {
    let future = || {
        let (version, address) = text.strip_prefix(['v', 'V'])?.split_once('.')?;
        let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(is_version && !address.is_empty() && address.bytes().all(|byte| is_name_byte(byte) || byte == b':'))
    };
    text.parse::<Ipv6Addr>().is_ok() || future().unwrap_or(false)
}

/// A name, or an IPv4 address: its percent-encoded bytes have two hexadecimal digits each.
fn is_registered_name(text: &str) -> bool {
    let mut parts = text.split('%');
    let is_plain = |part: &str| part.bytes().all(is_name_byte);
    parts.next().is_none_or(is_plain)
        && parts.all(|part| {
            part.split_at_checked(2)
                .is_some_and(|(code, rest)| code.bytes().all(|byte| byte.is_ascii_hexdigit()) && is_plain(rest))
        })
}

/// RFC 3986's `unreserved` and `sub-delims`.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// A port has digits only, and may be missing after the colon.
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// Adds what every response to one request gets, whether the API, a transport or the admin port made it, and refusals too:
/// the headers that let pages of an allowed origin read it, and how long the connection lasts.
#[derive(Clone)]
pub(crate) struct Finish {
    /// The origin of the page that asks, once it has been checked.
    pub(crate) origin: Option<HeaderValue>,
    pub(crate) drain: Arc<Drain>,
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
        let headers = response.headers_mut();
        if self.drain.is_draining() {
            headers.entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
        }
        if !headers.contains_key(header::CONNECTION) {
            headers.insert(KEEP_ALIVE.0, KEEP_ALIVE.1);
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

    #[test]
    fn http_1_1_needs_one_valid_host() {
        let checked = |version, hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            check_host(version, &headers).is_ok()
        };
        for valid in ["a", "a:80", "a:", "127.0.0.1:8080", "[::1]", "[::1]:8080", "[v1.a:b]:80", "a%41", "a_b.c", ""] {
            assert!(checked(Version::HTTP_11, &[valid]), "{valid}");
        }
        let alone = [
            "a b",
            "user@a",
            "a/b",
            "a:x",
            "a:+80",
            "a:65536",
            "a:80:80",
            "::1",
            "[zz]",
            "[]",
            "[::1",
            "[::1]x",
            "[::1]:+80",
            "[v1]",
            "[v.a]",
            "a%4",
            "a%zz",
            "a%",
            "a[b]",
        ];
        for invalid in alone {
            assert!(!checked(Version::HTTP_11, &[invalid]), "{invalid}");
        }
        for invalid in [&[][..], &["a", "a"]] {
            assert!(!checked(Version::HTTP_11, invalid), "{invalid:?}");
        }
        assert!(checked(Version::HTTP_10, &[]));
    }
}
