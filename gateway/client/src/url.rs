//! The gateway's address as it is given to the commands, and the encoding of names in request targets. Nothing is resolved
//! here.

use crate::output::Failure;
use hyper::Uri;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a gateway is: host, port, the path that it is mounted under, and whether it expects TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayUrl {
    /// `host:port`: the `Host` header, and the name to resolve.
    pub(crate) authority: String,
    /// The host alone, without the brackets of an IPv6 address: the name that a certificate must be for.
    pub(crate) host: String,
    /// `https` or `wss`.
    pub(crate) is_secure: bool,
    /// The path before every other path; without a slash at its end.
    prefix: String,
}

impl GatewayUrl {
    /// Reads the value of the flag `flag`. `http` and `ws` mean the same, as do `https` and `wss`: the command knows which
    /// protocol it speaks.
    pub(crate) fn parse(flag: &str, url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::config(format_args!("{flag} {url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let is_secure = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(wrong("must begin with http://, https://, ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong("cannot contain a user or a query; a token goes into --token"));
        }
        let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            is_secure,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Reads the value of `--admin`: a URL, or `host:port` as the server's own option has it. A server that listens on the
    /// unspecified address is asked on loopback.
    pub(crate) fn parse_admin(address: &str) -> Result<Self, Failure> {
        let url = match address.parse::<SocketAddr>() {
            _ if address.contains("://") => address.to_owned(),
            Ok(socket) if socket.ip().is_unspecified() => {
                let loopback: IpAddr =
                    if socket.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                format!("http://{}", SocketAddr::new(loopback, socket.port()))
            }
            _ => format!("http://{address}"),
        };
        Self::parse("--admin", &url)
    }

    /// The target of a request; `path` begins with a slash.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

/// Encodes text as one segment of a path or one value of a query (RFC 3986 section 2.1).
pub(crate) fn percent_encoded(text: &str) -> String {
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

    fn parse(url: &str) -> Result<GatewayUrl, Failure> {
        GatewayUrl::parse("--url", url)
    }

    #[test]
    fn urls_of_all_four_schemes_are_taken_with_port_and_prefix() {
        let url = parse("http://[::1]:81/live/").unwrap();
        assert_eq!((&*url.authority, &*url.host, &*url.path("/ws")), ("[::1]:81", "::1", "/live/ws"));
        for (url, authority, is_secure) in [
            ("ws://example.com", "example.com:80", false),
            ("https://example.com", "example.com:443", true),
            ("wss://example.com:8443", "example.com:8443", true),
        ] {
            let parsed = parse(url).unwrap();
            assert_eq!((&*parsed.authority, parsed.is_secure), (authority, is_secure), "{url}");
        }
    }

    #[test]
    fn what_is_no_gateway_url_is_refused_with_its_flag() {
        for url in ["a:80", "ftp://a", "/x", "ws://u:p@a", "ws://a?b=c", ""] {
            let failure = parse(url).unwrap_err();
            assert!(failure.exit_code == 78 && failure.text.starts_with("--url"), "{url}: {failure:?}");
        }
    }

    #[test]
    fn an_unspecified_admin_listener_is_asked_on_loopback() {
        let asked = |address| GatewayUrl::parse_admin(address).unwrap().authority;
        assert_eq!(asked("0.0.0.0:8081"), "127.0.0.1:8081");
        assert_eq!(asked("[::]:8081"), "[::1]:8081");
        assert_eq!(asked("localhost:8081"), "localhost:8081");
        assert_eq!(asked("https://node.example"), "node.example:443");
        assert!(GatewayUrl::parse_admin("no host").unwrap_err().text.starts_with("--admin"));
    }

    #[test]
    fn rooms_are_encoded_as_one_segment() {
        assert_eq!(percent_encoded("chat:1/a,b%~"), "chat%3A1%2Fa%2Cb%25~");
    }
}
