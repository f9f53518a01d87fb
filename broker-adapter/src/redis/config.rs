//! Where Redis is and how the broker uses it. Parsed before anything connects; `Debug` and errors never show a
//! password.

use crate::{
    IsPayload,
    redis::{Address, AddressKind, ConfigError},
};
use std::time::Duration;

/// Called with the name of a task that has panicked although the broker needs it: without it the broker would look well
/// and deliver nothing.
pub type OnPanic = fn(&'static str);

/// How a [`RedisBroker`](crate::RedisBroker) uses Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// One address, or several among which rooms are divided. A cluster is the only address.
    pub(crate) addresses: Vec<Address>,
    /// The beginning of every key and channel. Default `fanfare`.
    pub prefix: String,
    /// How many subscriber connections each master gets; a room's messages come over one of them. 1 to 16, default 2.
    pub subscriber_connections: usize,
    /// The interval between this node's heartbeats. Default 1 s.
    pub heartbeat: Duration,
    /// A node without a heartbeat for this long is dead, and another node removes its members. Default 10 s, at least
    /// 3 heartbeats.
    pub dead_after: Duration,
    /// The interval in which the heads of all quiet rooms are compared. A message that Redis lost unnoticed is found
    /// within two intervals. Default 30 s.
    pub sweep: Duration,
    /// Tells payloads of messages from what was damaged in history: members get a gap instead. Default: all are taken.
    pub is_payload: IsPayload,
    /// What happens when a task that the broker needs has panicked. Default: a line in the log.
    pub on_panic: OnPanic,
}

impl RedisConfig {
    /// Reads one or several addresses, separated by commas or blanks. Everything else has its default. The forms are
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`
    /// - `redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master-name[/database]`
    /// - `redis+cluster://[[user]:password@]host[:port][,host[:port]...]`
    ///
    /// and each of them with `rediss` for TLS.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be used.
    pub fn parse(urls: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            addresses: Address::parse_all(urls)?,
            prefix: "fanfare".into(),
            subscriber_connections: 2,
            heartbeat: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            sweep: Duration::from_secs(30),
            is_payload: |_| true,
            on_panic: |task| tracing::error!(task, "a task of the broker has panicked"),
        })
    }

    /// Accepts servers whose certificates are signed by one of these authorities (PEM), instead of the public ones.
    ///
    /// # Errors
    /// [`ConfigError::Authorities`].
    pub fn trust(&mut self, authorities: &[u8]) -> Result<(), ConfigError> {
        let mut used = false;
        for address in &mut self.addresses {
            used |= address.trust(authorities)?;
        }
        if used { Ok(()) } else { Err(ConfigError::Authorities) }
    }

    /// Checks the fields that can be set after [`RedisConfig::parse`].
    ///
    /// # Errors
    /// [`ConfigError::SubscriberConnections`], [`ConfigError::Prefix`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let in_prefix = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'_');
        if !(1..=16).contains(&self.subscriber_connections) {
            return Err(ConfigError::SubscriberConnections);
        }
        if !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(in_prefix) {
            return Err(ConfigError::Prefix);
        }
        Ok(())
    }

    /// The hosts and ports, for logs.
    #[must_use]
    pub fn address(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Whether keys and channels need a slot of a Redis Cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        self.addresses.iter().any(|address| address.kind == AddressKind::Cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        let config = RedisConfig::parse("redis://ann:s3cret@cache/0,rediss+sentinel://:s3cret@b/main").unwrap();
        assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        assert!(!format!("{:?}", RedisConfig::parse("redis://ann:s3cret@cache/x").err()).contains("s3cret"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let mut good = RedisConfig::parse("redis://a").unwrap();
        assert_eq!(good.trust(b"nothing"), Err(ConfigError::Authorities));
        assert_eq!(good.check(), Ok(()));
        assert_eq!(
            RedisConfig { subscriber_connections: 0, ..good.clone() }.check(),
            Err(ConfigError::SubscriberConnections)
        );
        assert_eq!(RedisConfig { prefix: "a{b}".into(), ..good }.check(), Err(ConfigError::Prefix));
    }
}
