//! The gateway's address as the client commands are given it, and the targets of requests to it. It resolves nothing.

use super::{EXIT_CONFIG, Failure};
use hyper::Uri;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a gateway is: host, port and the path it is mounted under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// `host:port`, as in a `Host` header and as a socket address to resolve.
    pub(super) authority: String,
    /// What stands before every path; without a slash at its end.
    prefix: String,
}

impl Server {
    /// Reads a URL: `http` and `ws` mean the same, the command itself knows which of the two it speaks.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::new(EXIT_CONFIG, format_args!("--url {url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        match uri.scheme_str() {
            Some("ws" | "http") => {}
            Some("wss" | "https") => {
                return Err(wrong("this command does not speak TLS; give the ws:// or http:// address of a node"));
            }
            _ => return Err(wrong("must begin with ws:// or http://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong("takes no user and no query; a token goes into --token"));
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// A listener that was given as an address; the unspecified one is asked on loopback.
    pub(super) fn of_listener(address: &str) -> Self {
        let authority = match address.parse::<SocketAddr>() {
            Ok(socket) if socket.ip().is_unspecified() => {
                let loopback: IpAddr =
                    if socket.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                SocketAddr::new(loopback, socket.port()).to_string()
            }
            _ => address.to_owned(),
        };
        Self { authority, prefix: String::new() }
    }

    /// The target of a request; `path` begins with a slash.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The URL of a WebSocket.
    pub(super) fn websocket(&self, path: &str) -> String {
        format!("ws://{}{}", self.authority, self.path(path))
    }
}

/// Text as one segment of a path or one value of a query.
pub(super) fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_both_schemes_are_taken_with_port_and_prefix() {
        let server = Server::parse("http://[::1]:81/live/").unwrap();
        assert_eq!(server.websocket("/ws"), "ws://[::1]:81/live/ws");
        assert_eq!(Server::parse("ws://example.com").unwrap().authority, "example.com:80");
        for url in ["wss://a", "https://a", "a:80", "ftp://a", "/x", "ws://u:p@a", "ws://a?b=c", ""] {
            assert_eq!(Server::parse(url).unwrap_err().code, EXIT_CONFIG, "{url}");
        }
        assert!(Server::parse("wss://a").unwrap_err().text.contains("TLS"));
    }

    #[test]
    fn an_unspecified_listener_is_asked_on_loopback() {
        let asked = |address| Server::of_listener(address).authority;
        assert_eq!(asked("0.0.0.0:8081"), "127.0.0.1:8081");
        assert_eq!(asked("[::]:8081"), "[::1]:8081");
        assert_eq!(asked("localhost:8081"), "localhost:8081");
    }

    #[test]
    fn rooms_are_encoded_as_one_segment() {
        assert_eq!(percent_encoded("chat:1/a,b%~"), "chat%3A1%2Fa%2Cb%25~");
    }
}
