//! The errors of the Redis broker, and what an error reply of Redis means: to the caller who asked, and about which
//! server has the room. Retries nothing.

use crate::BrokerError;
use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

/// Why a [`Config`](crate::redis::Config) cannot be used. The text never repeats the address, which may hold a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The address has none of the forms that [`Config::parse`](crate::redis::Config::parse) takes.
    #[error(
        "not an address of the form redis://[[user]:password@]host[:port][/database], \
         redis+sentinel://host[:port],.../master-name or redis+cluster://host[:port],... (rediss for TLS)"
    )]
    Malformed,
    /// A sentinel address does not end with the name of the master that the sentinels are asked for.
    #[error("a sentinel address ends with the master's name: redis+sentinel://host:26379/master-name")]
    MasterName,
    /// A cluster is combined with other addresses, or its address names a database.
    #[error(
        "a cluster cannot be combined with other addresses and has no databases: \
         redis+cluster://host:port,host:port"
    )]
    Cluster,
    /// Two addresses name the same server, or the same master of sentinels.
    #[error("two of the addresses lead to the same Redis")]
    Duplicate,
    /// The certificates of authorities cannot be read, or no address uses TLS.
    #[error("the certificates of authorities are not PEM, or no address begins with rediss")]
    Authorities,
    /// [`Config::subscriber_connections`](crate::redis::Config::subscriber_connections) is out of range.
    #[error("the number of subscriber connections is 1 to 16")]
    SubscriberConnections,
    /// [`Config::prefix`](crate::redis::Config::prefix) is empty, too long or has other characters.
    #[error("a key prefix has 1 to 64 letters, digits, dots, colons, dashes or underscores")]
    Prefix,
}

/// Why no connection to Redis could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No server listens there, the password is wrong, the server has no RESP3 (Redis 6 is the oldest with it), the
    /// user has no right to a command, …
    #[error("Redis at {address}: {why}")]
    Refused {
        /// Host and port.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// The server is a replica, which would take messages and pass them on to no other node.
    #[error("Redis at {address} is a replica, not the master")]
    Replica {
        /// Host and port.
        address: String,
    },
    /// The [`Config`](crate::redis::Config) cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Why a server refused a command on a room that another server has, or will have soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// The server is not a master, or not yet: a new connection may find the master.
    NotMaster,
    /// Another master has the room's slot, or the cluster has no master for it at the moment.
    Moved,
    /// The room's slot is on its way from one master to another.
    Migrating,
}

impl Redirect {
    /// `None`: the error is about something else.
    pub(crate) fn of(error: &ServerError) -> Option<Self> {
        Self::of_kind(error.kind()?)
    }

    fn of_kind(kind: ServerErrorKind) -> Option<Self> {
        use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
        match kind {
            ReadOnly | BusyLoading | MasterDown => Some(Self::NotMaster),
            Moved | ClusterDown => Some(Self::Moved),
            Ask | TryAgain => Some(Self::Migrating),
            _ => None,
        }
    }
}

/// What the error reply to one command of a pipeline means to the caller of that command.
pub(crate) fn refusal(error: &ServerError) -> BrokerError {
    match error.code() {
        _ if Redirect::of(error).is_some() => BrokerError::Unavailable,
        "OOM" => BrokerError::Overloaded,
        // Redis's error texts name commands, but neither rooms nor payloads.
        code => BrokerError::Protocol(format!("{code} {}", error.details().unwrap_or_default())),
    }
}

/// What the failure of a whole read means to its caller.
pub(crate) fn read_failure(error: &RedisError) -> BrokerError {
    let is_redirect = matches!(error.kind(), ErrorKind::Server(kind) if Redirect::of_kind(kind).is_some());
    if is_redirect || error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
        return BrokerError::Unavailable;
    }
    BrokerError::Protocol(error.code().map_or_else(|| format!("{:?}", error.kind()), str::to_owned))
}
