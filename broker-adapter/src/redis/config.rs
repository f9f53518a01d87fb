//! Where Redis is and how it is used. Parsed before anything connects; its `Debug` and errors never show a password.

use crate::redis::address::{Address, Kind};
use std::{fmt, time::Duration};

/// How a [`RedisBroker`](crate::RedisBroker) uses Redis.
#[derive(Clone)]
pub struct Config {
    /// One, or several among which rooms are divided; a cluster is alone.
    pub(crate) addresses: Vec<Address>,
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

/// The address is none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// None of the forms that `--redis` takes.
    #[error(
        "not an address of the form redis://[[user]:password@]host[:port][/database], \
         redis+sentinel://host[:port],.../master-name or redis+cluster://host[:port],... (rediss for TLS)"
    )]
    Malformed,
    /// Sentinels have to be asked for somebody.
    #[error("a sentinel address ends with the master's name: redis+sentinel://host:26379/master-name")]
    Service,
    /// A cluster with others beside it or with a database.
    #[error("a cluster stands alone and has no databases: redis+cluster://host:port,host:port")]
    Cluster,
    /// One server, or one master's name, in two addresses.
    #[error("two of the addresses lead to the same Redis")]
    Twice,
    /// What is to be trusted is none, or nothing uses it.
    #[error("the certificates of authorities are not PEM, or no address begins with rediss")]
    Authorities,
    /// [`Config::lanes`] out of range.
    #[error("the number of subscriber connections is 1 to 16")]
    Lanes,
    /// [`Config::prefix`] is empty, too long or has other characters.
    #[error("a key prefix has 1 to 64 letters, digits, dots, colons, dashes or underscores")]
    Prefix,
}

impl Config {
    /// Reads one or several addresses, separated by commas or blanks, of the forms
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`
    /// - `redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master-name[/database]`
    /// - `redis+cluster://[[user]:password@]host[:port][,host[:port]...]`
    ///
    /// and with `rediss` for TLS; everything else at its default.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot be used. It never repeats the address, which may hold a password.
    pub fn parse(urls: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            addresses: Address::parse_all(urls)?,
            prefix: "fanfare".into(),
            lanes: 2,
            heartbeat: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            sweep: Duration::from_secs(30),
        })
    }

    /// Certificates of servers are to be signed by one of these authorities (PEM), and not by the public ones.
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

    /// Hosts and ports, for logs.
    #[must_use]
    pub fn address(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Whether keys and channels have to be where the cluster's slots say.
    pub(crate) fn is_cluster(&self) -> bool {
        self.addresses.iter().any(|address| address.kind == Kind::Cluster)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address())
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
    fn no_password_is_shown() {
        let config = Config::parse("redis://ann:s3cret@cache/0,rediss+sentinel://:s3cret@b/main").unwrap();
        assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        assert!(!format!("{:?}", Config::parse("redis://ann:s3cret@cache/x").err()).contains("s3cret"));
    }

    #[test]
    fn limits() {
        let mut good = Config::parse("redis://a").unwrap();
        assert_eq!(good.trust(b"nothing"), Err(ConfigError::Authorities));
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Config { lanes: 0, ..good.clone() }.check(), Err(ConfigError::Lanes));
        assert_eq!(Config { prefix: "a{b}".into(), ..good }.check(), Err(ConfigError::Prefix));
    }
}
