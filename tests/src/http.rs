//! A small HTTP client: one request for each connection, and the reply with its whole body. Called by the tests of the
//! HTTP API and of the admin listener. It follows no redirects and does not retry.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::header::{HOST, HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait::within;

/// A request that is being built.
#[derive(Debug)]
pub struct Call {
    address: SocketAddr,
    builder: hyper::http::request::Builder,
    body: Bytes,
    what: String,
}

/// A reply to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text; empty if only the head was read.
    pub text: String,
}

/// Why a connection for messages was not opened.
#[derive(Debug)]
pub enum Refused {
    /// The server answered with another status than expected.
    Reply(Box<Reply>),
    /// There was no HTTP reply.
    Network(String),
}

/// A request with any method.
#[must_use]
pub fn call(method: &str, address: SocketAddr, path: &str) -> Call {
    let builder = Request::builder().method(method).uri(path).header(HOST, address.to_string());
    Call { address, builder, body: Bytes::new(), what: format!("{method} {path}") }
}

/// A GET.
#[must_use]
pub fn get(address: SocketAddr, path: &str) -> Call {
    call("GET", address, path)
}

/// A POST with a JSON body.
#[must_use]
pub fn post(address: SocketAddr, path: &str, json: &Value) -> Call {
    call("POST", address, path).header("content-type", "application/json").body(json.to_string())
}

/// A DELETE.
#[must_use]
pub fn delete(address: SocketAddr, path: &str) -> Call {
    call("DELETE", address, path)
}

impl Call {
    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    /// Replaces the header `Host`, which is otherwise the address.
    ///
    /// # Panics
    /// If the host is no valid header value.
    #[must_use]
    pub fn replace_host(mut self, host: &str) -> Self {
        if let Some(headers) = self.builder.headers_mut() {
            headers.insert(HOST, host.parse().expect("the host is a header value"));
        }
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it and returns the reply.
    ///
    /// # Panics
    /// If no reply comes in time.
    pub async fn send(self) -> Reply {
        let what = self.what.clone();
        within(&what, self.try_send()).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends it and returns the reply.
    ///
    /// # Errors
    /// If the connection breaks before the end of the reply.
    pub async fn try_send(self) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let request = self.builder.body(Full::new(self.body))?;
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The connection ends with the reply, because `sender` is its only handle.
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        drop(sender);
        driver.abort();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, text })
    }
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header; empty if it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The time in `Retry-After`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after").parse().ok().map(Duration::from_secs)
    }

    /// The body as JSON, of a reply that must have this status.
    ///
    /// # Panics
    /// If the status differs.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The `code` of a problem document that must have this status.
    ///
    /// # Panics
    /// If the status differs, or the body is not a problem document of RFC 9457 with the members of docs/protocol.md.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let json = self.json();
        assert_eq!(json["status"], status, "{json}");
        assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()), "{json}");
        assert!(json["detail"].is_string() && json["retryable"].is_boolean(), "{json}");
        json["code"].as_str().expect("a problem has a code").to_owned()
    }
}

impl Refused {
    pub(crate) fn network(error: impl std::fmt::Display) -> Self {
        Self::Network(error.to_string())
    }

    /// The status of the reply.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Reply(reply) => Some(reply.status),
            Self::Network(_) => None,
        }
    }

    /// The time after which the server wants the client to try again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Reply(reply) => reply.retry_after(),
            Self::Network(_) => None,
        }
    }
}
