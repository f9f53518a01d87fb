//! Which web pages may talk to this gateway: the browser names the page's origin, and it is compared exactly. Asked for
//! every request of every transport, upgrades included. No pattern, no substring: both have let attackers in elsewhere.

use std::str::FromStr;

/// The origins that are let in.
#[derive(Debug, Clone)]
pub(crate) struct OriginPolicy {
    allowed: Vec<Origin>,
}

impl OriginPolicy {
    /// Only these; none: only pages served under the gateway's own host and port.
    pub(crate) fn new(allowed: Vec<Origin>) -> Self {
        Self { allowed }
    }

    /// Whether a page of `origin` may send this request to `host` (the `Host` header). Without a list the scheme is
    /// not compared, since TLS may end in front of the gateway.
    pub(crate) fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        if self.allowed.is_empty() {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            return authority.zip(host).is_some_and(|(page, host)| page.eq_ignore_ascii_case(host));
        }
        self.allowed.iter().any(|allowed| allowed.is(origin))
    }
}

/// A web page's origin as browsers write it: scheme, host and port, without the scheme's own port, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin(String);

impl Origin {
    /// Whether an `Origin` header names this one.
    pub(crate) fn is(&self, header: &str) -> bool {
        self.0.eq_ignore_ascii_case(header)
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let wrong = || format!("must be scheme://host or scheme://host:port, not {text:?}");
        let (scheme, host) = lower.split_once("://").ok_or_else(wrong)?;
        let scheme_is_one = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !scheme_is_one || !is_host(host) {
            return Err(wrong());
        }
        let own_port = match scheme {
            "https" => ":443",
            "http" => ":80",
            _ => return Ok(Self(lower)),
        };
        Ok(Self(lower.strip_suffix(own_port).unwrap_or(&lower).to_owned()))
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, after),
        Some(_) => return false,
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    let host_is_one = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:%".contains(&b));
    !host.is_empty() && host_is_one && port_is_one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_whole() {
        let policy = OriginPolicy::new(vec!["https://app.example.com".parse().unwrap()]);
        assert!(policy.allows("https://app.example.com", None));
        assert!(policy.allows("https://APP.example.com", Some("other")));
        for bad in [
            "http://app.example.com",
            "https://app.example.com.evil.org",
            "https://evilapp.example.com",
            "null",
            "",
            "https://app.example.com:8443",
            "https://example.com",
            "app.example.com",
        ] {
            assert!(!policy.allows(bad, Some("app.example.com")), "{bad}");
        }
    }

    #[test]
    fn without_a_list_the_page_must_come_from_the_same_host_and_port() {
        let policy = OriginPolicy::new(Vec::new());
        assert!(policy.allows("https://rt.example.com:8080", Some("rt.example.com:8080")));
        for (origin, host) in [("https://rt.example.com", "rt.example.com:8080"), ("null", "null"), ("https://a", "b")]
        {
            assert!(!policy.allows(origin, Some(host)), "{origin} {host}");
        }
        assert!(!policy.allows("https://a", None));
    }
}
