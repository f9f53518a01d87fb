//! A small HTTP client: one request per connection, the answer with its body. Called by the tests of the HTTP API and
//! of the admin listener; it never follows redirects and never retries.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::header::{HOST, HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait::within;

/// A request being put together.
#[derive(Debug)]
pub struct Call {
    address: SocketAddr,
    builder: hyper::http::request::Builder,
    body: Bytes,
    what: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub text: String,
}

/// A request of any method.
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

/// A POST of JSON.
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
    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    /// The body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it.
    ///
    /// # Panics
    /// When no answer comes in time.
    pub async fn send(self) -> Reply {
        let what = self.what.clone();
        within(&what, self.try_send()).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends it.
    ///
    /// # Errors
    /// When there is no HTTP answer.
    pub async fn try_send(self) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let request = self.builder.body(Full::new(self.body))?;
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the answer: `sender` is the only handle on the connection.
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
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header's value, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The JSON of an answer that must have this status.
    ///
    /// # Panics
    /// When it has another.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The `code` of a problem that must have this status.
    ///
    /// # Panics
    /// When it has another, or is no `application/problem+json`.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let json = self.json();
        assert!(json["detail"].is_string() && json["retryable"].is_boolean(), "{json}");
        json["code"].as_str().expect("a problem has a code").to_owned()
    }
}
