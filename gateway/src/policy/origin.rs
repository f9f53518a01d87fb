//! Which web pages may use this gateway. Browsers name the page's origin in every request that matters, WebSocket upgrades
//! included, and it is compared as a whole: patterns and substrings have let attackers in elsewhere. Called by
//! `transport::exchange` for every request.

use std::{
    collections::VecDeque,
    net::IpAddr,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Origins that are allowed, and those that were refused lately.
#[derive(Debug)]
pub(crate) struct OriginPolicy {
    allowed: Vec<Origin>,
    refused: Mutex<RefusedOrigins>,
}

impl OriginPolicy {
    pub(crate) fn new(allowed: Vec<Origin>) -> Self {
        Self { allowed, refused: Mutex::default() }
    }

    /// Whether a page of `origin` may send this request to `host` (the `Host` header). Listed origins may, and pages that
    /// the gateway served itself: their origin has the same host and port as the request. The scheme is not compared,
    /// since TLS may end in front of the gateway.
    ///
    /// A page is no page of the gateway if its owner has pointed a name of its own at the gateway's address (DNS rebinding):
    /// `Host` and `Origin` then have that name too. An operator who lists origins is protected from that: over plain HTTP
    /// only addresses and `localhost` are then taken for the gateway's own, since those cannot be pointed elsewhere. Over
    /// HTTPS a browser has checked the name against the certificate.
    pub(crate) fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        if self.allowed.iter().any(|allowed| allowed.is(origin)) {
            return true;
        }
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        // A browser leaves the scheme's own port out of the origin; some clients and proxies write it into `Host`.
        let own_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        let host = host.map(|host| host.strip_suffix(own_port).unwrap_or(host));
        let is_same_host = host.is_some_and(|host| authority.eq_ignore_ascii_case(host));
        is_same_host && (self.allowed.is_empty() || scheme.eq_ignore_ascii_case("https") || is_fixed(authority))
    }

    /// What an operator should know about a refused origin; `None` if it has been said lately.
    pub(crate) fn advise(&self, origin: &str, now: Instant) -> Option<String> {
        let is_news = self.refused.lock().unwrap_or_else(PoisonError::into_inner).is_news(origin, now);
        is_news.then(|| match origin.parse::<Origin>() {
            Ok(Origin(origin)) => format!(
                "refused a page of {origin}: to allow its pages, start with --origin {origin}, or add it to \
                 FANFARE_ORIGINS, or set origins = [\"{origin}\"] under [auth] in the configuration file"
            ),
            Err(_) if origin == "null" => {
                "refused a page without an origin, which cannot be allowed: the browser opened \
                                           it from a file or in a sandbox; serve the page over HTTP"
                    .to_owned()
            }
            Err(_) => format!("refused a request with a malformed Origin: {origin:?}"),
        })
    }
}

/// Whether a host is an address or `localhost`: no DNS server decides where it leads.
fn is_fixed(authority: &str) -> bool {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

/// Refused origins that were logged. Anybody can send any origin, so what is kept and what is logged are bounded.
#[derive(Debug, Default)]
struct RefusedOrigins {
    /// The latest first.
    logged: VecDeque<String>,
    /// When the current minute began, and how many were logged in it.
    minute: Option<(Instant, u32)>,
}

impl RefusedOrigins {
    /// Origins that are remembered.
    const KEPT: usize = 32;
    /// Longer ones are not looked at: the longest name in DNS has 253 bytes.
    const BYTES_MAX: usize = 300;
    /// Lines in a minute. A refused page tries again and again, so its line comes later if it is left out now.
    const PER_MINUTE: u32 = 10;

    fn is_news(&mut self, origin: &str, now: Instant) -> bool {
        if origin.len() > Self::BYTES_MAX || self.logged.iter().any(|logged| logged == origin) {
            return false;
        }
        let (began, count) = match self.minute {
            Some((began, count)) if now.duration_since(began) < Duration::from_secs(60) => (began, count),
            _ => (now, 0),
        };
        if count >= Self::PER_MINUTE {
            return false;
        }
        self.minute = Some((began, count + 1));
        self.logged.truncate(Self::KEPT - 1);
        self.logged.push_front(origin.to_owned());
        true
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
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !is_scheme || !is_host(host) {
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
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:%".contains(&b));
    !host.is_empty() && is_name && is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> OriginPolicy {
        OriginPolicy::new(vec!["https://app.example.com".parse().unwrap()])
    }

    #[test]
    fn origins_are_compared_whole() {
        let policy = listed();
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
        assert!(policy.allows("http://rt.example.com", Some("rt.example.com")));
        assert!(policy.allows("https://rt.example.com", Some("rt.example.com:443")));
        assert!(policy.allows("http://rt.example.com", Some("rt.example.com:80")));
        assert!(policy.allows("http://[::1]", Some("[::1]:80")));
        for (origin, host) in [
            ("https://rt.example.com", "rt.example.com:8080"),
            ("https://rt.example.com", "rt.example.com:80"),
            ("http://rt.example.com", "rt.example.com:443"),
            ("null", "null"),
            ("https://a", "b"),
        ] {
            assert!(!policy.allows(origin, Some(host)), "{origin} {host}");
        }
        assert!(!policy.allows("https://a", None));
    }

    #[test]
    fn the_own_host_is_allowed_beside_listed_origins() {
        for origin in [
            "http://127.0.0.1:8080",
            "http://localhost:8080",
            "http://demo.localhost",
            "http://[::1]:8080",
            "http://192.0.2.1",
            "https://rt.example.com",
            "https://rt.example.com:8443",
        ] {
            let host = origin.split_once("://").unwrap().1;
            assert!(listed().allows(origin, Some(host)), "{origin}");
            assert!(!listed().allows(origin, Some("other")), "{origin}");
        }
    }

    #[test]
    fn listed_origins_protect_from_names_that_are_pointed_at_the_gateway() {
        for origin in ["http://evil.example:8080", "http://127.0.0.1.evil.example", "http://localhost.evil.example"] {
            let host = origin.split_once("://").unwrap().1;
            assert!(!listed().allows(origin, Some(host)), "{origin}");
        }
    }

    #[test]
    fn a_refused_origin_is_advised_once_and_the_advice_can_be_copied() {
        let (policy, now) = (listed(), Instant::now());
        let advice = policy.advise("http://localhost:5173", now).unwrap();
        for part in ["--origin http://localhost:5173", "origins = [\"http://localhost:5173\"]", "FANFARE_ORIGINS"] {
            assert!(advice.contains(part), "{advice}");
        }
        assert_eq!(policy.advise("http://localhost:5173", now), None);
        assert!(policy.advise("null", now).unwrap().contains("serve the page over HTTP"));
        assert_eq!(policy.advise("a\nb", now).unwrap(), "refused a request with a malformed Origin: \"a\\nb\"");
        assert_eq!(policy.advise(&"a".repeat(301), now), None);
    }

    #[test]
    fn advice_on_refused_origins_is_bounded_in_memory_and_in_lines_per_minute() {
        let (policy, now) = (listed(), Instant::now());
        let advised =
            |at: Instant| (0..100).filter(|n| policy.advise(&format!("http://{n}.example"), at).is_some()).count();
        assert_eq!(advised(now), 10);
        assert_eq!(advised(now + Duration::from_secs(59)), 0);
        for minute in 1..10 {
            assert_eq!(advised(now + Duration::from_secs(61 * minute)), 10);
        }
        assert!(policy.refused.lock().unwrap().logged.len() <= 32);
    }
}
