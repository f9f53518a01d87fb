//! The head of an HTTP/1.1 response as bytes (RFC 9112 section 4), for sockets that have left hyper. Called by the
//! transports; it adds no header but `Date`.

use bytes::{BufMut as _, BytesMut};
use hyper::Response;
use std::time::SystemTime;

/// Status line, headers, `Date`, and the empty line.
pub(crate) fn head<T>(response: &Response<T>) -> BytesMut {
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
        let text = String::from_utf8(head(&response).to_vec()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nx-a: b\r\ndate: "), "{text}");
        assert!(text.ends_with(" GMT\r\n\r\n"), "{text}");
    }
}
