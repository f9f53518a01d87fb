//! Connections to a gateway: the one way in which `sub`, `pub`, `bench` and `health` reach it, over TCP and, where the URL
//! says so, TLS. What is said on a connection is `http`'s, `subscribe`'s and `bench`'s.

use crate::{
    failure::Failure,
    tls::{Tls, TlsOptions},
    token::Token,
    url::GatewayUrl,
};
use clap::Args;
use hyper::{
    Method, Request,
    header::{AUTHORIZATION, HOST, HeaderValue},
    http::request,
};
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// A byte stream to a gateway, without TLS or with it. A TLS session is large, so it is in a box.
pub(crate) type Connection = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The flags that say which gateway a command uses and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct GatewayOptions {
    /// The gateway: http, https, ws or wss.
    #[arg(long, value_name = "URL", env = "FANFARE_URL", hide_env_values = true)]
    #[arg(default_value = "ws://127.0.0.1:8080")]
    pub(crate) url: String,
    /// Token or API key.
    #[arg(long, value_name = "TOKEN", env = "FANFARE_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    #[command(flatten)]
    tls: TlsOptions,
}

/// A gateway that a command uses.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) url: GatewayUrl,
    /// What an `Authorization` header says.
    pub(crate) authorization: Option<HeaderValue>,
    tls: Option<Tls>,
}

/// Why there is no connection, or no response on one.
#[derive(Debug)]
pub(crate) enum ConnectionError {
    /// A later attempt can succeed.
    Transient(String),
    /// Every attempt will end like this one.
    Permanent(String),
}

impl Gateway {
    /// Reads the options. Nothing is connected yet.
    ///
    /// # Errors
    /// Which of the options is wrong.
    pub(crate) fn new(options: &GatewayOptions) -> Result<Self, Failure> {
        let mut gateway = Self::without_token(GatewayUrl::parse("--url", &options.url)?, &options.tls)?;
        gateway.authorization = options.token.as_ref().map(Token::header).transpose()?;
        Ok(gateway)
    }

    /// A gateway that is used without a token.
    ///
    /// # Errors
    /// The options for TLS cannot be used.
    pub(crate) fn without_token(url: GatewayUrl, options: &TlsOptions) -> Result<Self, Failure> {
        let tls = url.is_secure.then(|| Tls::new(&url.host, options)).transpose()?;
        Ok(Self { url, authorization: None, tls })
    }

    /// The beginning of an HTTP request for `path` below the gateway's URL.
    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(self.url.path(path)).header(HOST, &self.url.authority);
        match &self.authorization {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        }
    }

    /// Resolves the gateway's name.
    pub(crate) async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectionError> {
        let authority = &self.url.authority;
        let unknown = |why: &dyn fmt::Display| ConnectionError::Transient(format!("{authority}: {why}"));
        let addresses: Vec<_> = lookup_host(authority).await.map_err(|error| unknown(&error))?.collect();
        if addresses.is_empty() { Err(unknown(&"no address")) } else { Ok(addresses) }
    }

    /// Opens a connection to the first of the gateway's addresses that accepts one.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectionError> {
        let mut last = Err(ConnectionError::Transient(format!("{}: no address", self.url.authority)));
        for address in self.resolve().await? {
            last = self.connect_to(address, None).await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Opens a connection to one of the gateway's addresses, from a local address where one is given.
    pub(crate) async fn connect_to(
        &self,
        address: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<Connection, ConnectionError> {
        let cannot = |why: &dyn fmt::Display| format!("cannot connect to {}: {why}", self.url.authority);
        let stream = open(address, from).await.map_err(|error| ConnectionError::Transient(cannot(&error)))?;
        let Some(tls) = &self.tls else { return Ok(Either::Left(stream)) };
        match tls.connect(stream).await {
            Ok(stream) => Ok(Either::Right(Box::new(stream))),
            Err(error) => Err(match tls.permanent_fault(&error) {
                Some(fault) => ConnectionError::Permanent(cannot(&fault)),
                None => ConnectionError::Transient(cannot(&format_args!("TLS: {error}"))),
            }),
        }
    }
}

async fn open(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    // Requests and frames are small single writes, and each waits for its response: Nagle's algorithm only delays them.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transient(text) | Self::Permanent(text) => f.write_str(text),
        }
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::refused(error)
    }
}
