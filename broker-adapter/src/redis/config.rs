//! Where Redis is and how it is used. Parsed before anything connects; its `Debug` and errors never show a password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use std::{fmt, time::Duration};

/// How a [`RedisBroker`](crate::RedisBroker) uses Redis.
#[derive(Clone)]
pub struct Config {
    pub(super) connection: ConnectionInfo,
    /// What every key and channel begins with. Default `fanfare`.
    pub prefix: String,
    /// Subscriber connections; a room's messages come over one of them. 1 to 16, default 2.
    pub lanes: usize,
    /// How often this node says that it lives. Default 1 s.
    pub heartbeat: Duration,
    /// Without a heartbeat for so long a node is dead: others remove its members. Default 10 s, at least 3 heartbeats.
    pub dead_after: Duration,
    /// How often the heads of quiet rooms are compared; a message that was lost in silence is found within two of
    /// these. Default 30 s.
    pub sweep: Duration,
}

/// The address is none that this version can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not `redis://[[user]:password@]host[:port][/database]`.
    #[error("not an address of the form redis://[[user]:password@]host[:port][/database]")]
    Malformed,
    /// `rediss://`: this build has no TLS.
    #[error("rediss:// needs TLS, which this build does not contain; use redis:// inside a private network")]
    Tls,
    /// `redis-sentinel://` and the like.
    #[error("Sentinel is not supported by this version; use the address of the master")]
    Sentinel,
    /// A list of addresses.
    #[error("several Redis addresses are not supported by this version")]
    Several,
    /// [`Config::lanes`] out of range.
    #[error("the number of subscriber connections is 1 to 16")]
    Lanes,
    /// [`Config::prefix`] is empty, too long or has other characters.
    #[error("a key prefix has 1 to 64 letters, digits, dots, colons, dashes or underscores")]
    Prefix,
}

impl Config {
    /// Reads `redis://[[user]:password@]host[:port][/database]`; everything else at its default.
    ///
    /// # Errors
    /// [`ConfigError`] says what this version cannot use. It never repeats the address, which may hold a password.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme).ok_or(ConfigError::Malformed)?;
        match scheme {
            "redis" => {}
            "rediss" | "valkeys" => return Err(ConfigError::Tls),
            s if s.contains("sentinel") => return Err(ConfigError::Sentinel),
            _ => return Err(ConfigError::Malformed),
        }
        if url.contains([',', ' ']) || url.matches("://").count() > 1 {
            return Err(ConfigError::Several);
        }
        let info = url.into_connection_info().map_err(|_| ConfigError::Malformed)?;
        if !matches!(info.addr(), ConnectionAddr::Tcp(..)) {
            return Err(ConfigError::Malformed);
        }
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let connection = info.set_redis_settings(settings);
        Ok(Self {
            connection,
            prefix: "fanfare".into(),
            lanes: 2,
            heartbeat: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            sweep: Duration::from_secs(30),
        })
    }

    /// Checks what can be set after [`Config::parse`].
    ///
    /// # Errors
    /// [`ConfigError::Lanes`], [`ConfigError::Prefix`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let in_prefix = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'_');
        if !(1..=16).contains(&self.lanes) {
            return Err(ConfigError::Lanes);
        }
        if !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(in_prefix) {
            return Err(ConfigError::Prefix);
        }
        Ok(())
    }

    /// Host and port, for logs.
    #[must_use]
    pub fn address(&self) -> String {
        self.connection.addr().to_string()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address())
            .field("database", &self.connection.redis_settings().db())
            .field("prefix", &self.prefix)
            .field("lanes", &self.lanes)
            .field("heartbeat", &self.heartbeat)
            .field("dead_after", &self.dead_after)
            .field("sweep", &self.sweep)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_what_is_refused() {
        let config = Config::parse("redis://ann:s3cret@cache.internal:6380/3").unwrap();
        assert_eq!(config.address(), "cache.internal:6380");
        assert_eq!(config.connection.redis_settings().db(), 3);
        assert_eq!(config.connection.redis_settings().password(), Some("s3cret"));
        assert_eq!(Config::parse("redis://localhost").unwrap().address(), "localhost:6379");
        for (url, why) in [
            ("rediss://cache", ConfigError::Tls),
            ("redis-sentinel://a:26379/mymaster", ConfigError::Sentinel),
            ("redis://a:1,b:2", ConfigError::Several),
            ("redis://a:1 redis://b:2", ConfigError::Several),
            ("http://a", ConfigError::Malformed),
            ("localhost:6379", ConfigError::Malformed),
            ("redis://a/x", ConfigError::Malformed),
        ] {
            assert_eq!(Config::parse(url).err(), Some(why), "{url}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        let config = Config::parse("redis://ann:s3cret@cache/0").unwrap();
        assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        assert!(!format!("{:?}", Config::parse("redis://ann:s3cret@cache/x").err()).contains("s3cret"));
    }

    #[test]
    fn limits() {
        let good = Config::parse("redis://a").unwrap();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Config { lanes: 0, ..good.clone() }.check(), Err(ConfigError::Lanes));
        assert_eq!(Config { prefix: "a{b}".into(), ..good }.check(), Err(ConfigError::Prefix));
    }
}
