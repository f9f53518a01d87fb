//! Connections to a gateway: the one way in which `sub`, `pub`, `bench` and `health` reach it, over TCP and, where the URL
//! says so, TLS. What is said on a connection is `http`'s, `subscribe`'s and `bench`'s.

use crate::{
    output::Failure,
    tls::{Tls, TlsOptions},
    url::GatewayUrl,
};
use clap::Args;
use hyper::{
    Method, Request,
    header::{AUTHORIZATION, HOST, HeaderValue},
    http::request,
};
use std::{
    fmt::Display,
    io,
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

/// The `Authorization` header for a token, which `Debug` hides; `None` if a header cannot hold the token.
#[derive(Debug, Clone)]
struct Token(Option<HeaderValue>);

impl From<String> for Token {
    fn from(text: String) -> Self {
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).ok();
        header.iter_mut().for_each(|header| header.set_sensitive(true));
        Self(header)
    }
}

/// A gateway that a command uses.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) url: GatewayUrl,
    pub(crate) authorization: Option<HeaderValue>,
    tls: Option<Tls>,
}

impl Gateway {
    /// Reads the options. Nothing is connected yet.
    pub(crate) fn new(options: &GatewayOptions) -> Result<Self, Failure> {
        let mut gateway = Self::without_token(GatewayUrl::parse("--url", &options.url)?, &options.tls)?;
        if let Some(Token(header)) = &options.token {
            let unfit = || Failure::config("--token: it contains characters that an HTTP header cannot hold");
            gateway.authorization = Some(header.clone().ok_or_else(unfit)?);
        }
        Ok(gateway)
    }

    pub(crate) fn without_token(url: GatewayUrl, options: &TlsOptions) -> Result<Self, Failure> {
        let tls = url.is_secure.then(|| Tls::new(&url.host, options)).transpose()?;
        Ok(Self { url, authorization: None, tls })
    }

    /// The beginning of an HTTP request for `path` below the gateway's URL.
    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(self.url.path(path)).header(HOST, &self.url.authority);
        self.authorization.iter().fold(request, |request, token| request.header(AUTHORIZATION, token))
    }

    /// The addresses of the gateway's name: at least one.
    pub(crate) async fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        let authority = &self.url.authority;
        let unknown = |why: &dyn Display| Failure::refused(format_args!("{authority}: {why}"));
        let addresses: Vec<_> = lookup_host(authority).await.map_err(|error| unknown(&error))?.collect();
        if addresses.is_empty() { Err(unknown(&"no address")) } else { Ok(addresses) }
    }

    /// Opens a connection to the first of the gateway's addresses that accepts one.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let mut last = Err(Failure::refused("no address"));
        for address in self.resolve().await? {
            last = self.connect_to(address, None).await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Opens a connection to one of the gateway's addresses, from a local address where one is given.
    pub(crate) async fn connect_to(&self, address: SocketAddr, from: Option<IpAddr>) -> Result<Connection, Failure> {
        let connected = match (open(address, from).await.map_err(Failure::refused), &self.tls) {
            (Ok(stream), Some(tls)) => tls.connect(stream).await.map(Box::new).map(Either::Right),
            (stream, _) => stream.map(Either::Left),
        };
        let authority = &self.url.authority;
        connected.map_err(|why| Failure { text: format!("cannot connect to {authority}: {}", why.text), ..why })
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
