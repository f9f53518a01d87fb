//! The values of a configuration, and how each is read from text. Called by the option table and the file's sections. Its
//! errors say what would be valid, and never repeat what may hold a password.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, str::FromStr, time::Duration};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object per line.
    Json,
}

/// How log lines are written.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("must be text or json, not {text:?}")),
    }
}

/// The least important lines that are still logged.
pub(super) fn log_level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        _ => Err(format!("must be error, warn, info, debug or trace, not {text:?}")),
    }
}

/// The address of a Redis server, of sentinels, of a cluster, or of one of several servers. It may hold a password, which
/// neither `Debug` nor `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl(String);

impl RedisUrl {
    /// The whole URL, password included: for the connection only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    /// Errors never repeat the text: a password in it would end up in a log.
    fn from_str(text: &str) -> Result<Self, String> {
        fanfare_broker::redis::RedisConfig::parse(text).map(|_| Self(text.to_owned())).map_err(|why| why.to_string())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.split(['?', '#']).next().unwrap_or_default();
        match (address.split_once("://"), address.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, hosts))) => write!(f, "{scheme}://***@{hosts}"),
            _ => f.write_str(address),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The beginning of all keys and channels in Redis.
pub(super) fn redis_prefix(text: &str) -> Result<String, String> {
    let mut broker = fanfare_broker::redis::RedisConfig::parse("redis://any").map_err(|why| why.to_string())?;
    text.clone_into(&mut broker.prefix);
    broker.check().map(|()| broker.prefix).map_err(|why| why.to_string())
}

/// An address to listen on or to be reached at.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("must be IP:PORT such as 0.0.0.0:8080 or [::1]:8080, not {text:?}"))
}

/// A whole number within bounds.
pub(super) fn whole(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let wrong = || format!("must be a whole number from {} to {}, not {text:?}", range.start(), range.end());
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(wrong)
}

/// A time up to an hour: in whole seconds, or with its unit as [`span`] takes it.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("must be a time from 0 to 1h, in seconds or such as \"90s\" or \"5m\", not {text:?}");
    let time = text.parse().map(Duration::from_secs).or_else(|_| span(text));
    time.ok().filter(|time| *time <= Duration::from_secs(3600)).ok_or_else(wrong)
}

/// A time with its unit: `90s`, `5m`, `24h`, `7d`; from a second to 30 days.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("must be a time from 1s to 30d, such as \"90s\", \"5m\" or \"24h\", not {text:?}");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=30 * 86_400).contains(total)).ok_or_else(wrong)?;
    Ok(Duration::from_secs(total))
}

/// On or off.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("must be true or false, not {text:?}")),
    }
}

/// A node's name, as it appears in frames, metrics and logs.
pub(super) fn node(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(is_name_byte);
    let wrong = || format!("must be 1 to 64 letters, digits, '.', '_' or '-', not {text:?}");
    fits.then(|| text.to_owned()).ok_or_else(wrong)
}

/// Whether a node's name may have this byte.
pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}
