//! The errors of the Redis broker, and what an error reply of Redis means: to the caller who asked, and for the
//! connection. Retries nothing.

use crate::BrokerError;
use parking_lot::Mutex;
use redis::{ErrorKind, RedisError, ServerError};
use std::time::{Duration, Instant};

/// Between two lines of the log about one thing.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why a [`RedisConfig`](crate::redis::RedisConfig) cannot be used. The text never repeats the address, which may hold a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The address has none of the forms that [`RedisConfig::parse`](crate::redis::RedisConfig::parse) takes.
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
    /// [`RedisConfig::subscriber_connections`](crate::redis::RedisConfig::subscriber_connections) is out of range.
    #[error("the number of subscriber connections is 1 to 16")]
    SubscriberConnections,
    /// [`RedisConfig::prefix`](crate::redis::RedisConfig::prefix) is empty, too long or has other characters.
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
    /// The operating system refuses the broker's thread.
    #[error("the operating system refuses a thread: {0}")]
    Thread(String),
    /// The [`RedisConfig`](crate::redis::RedisConfig) cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What it means that Redis refuses a command: what the caller gets, and what becomes of the connection. Nothing else
/// knows Redis's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalClass {
    /// The server is a replica, or has not loaded its data yet.
    NotMaster,
    /// Another master has the room's slot.
    Moved,
    /// The room's slot is on its way from one master to another.
    Migrating,
    /// The cluster has no master for the room's slot at present.
    ClusterDown,
    /// Redis takes no writes at present: a full memory, too few replicas, a failed snapshot.
    NotWritable,
    /// An operator has to act: rights, passwords, a command that is switched off, keys of another program.
    Misconfigured,
    /// Redis does something else at present.
    Busy,
    /// The fault is this program's.
    Bug,
}

/// What can lead to a server that takes the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A new connection, which looks for the master.
    Reconnect,
    /// To learn which master has which slots.
    RefreshTopology,
}

/// What refusals without a code of their own say if an operator has to act, in lower case. For what a script lacks the
/// right to, Redis 7.0 and older begin with "The user executing the script", newer ones and Valkey with "ACL failure".
const MISCONFIGURED: [&str; 10] = [
    "unknown command",
    "unknown redis command",
    "unknown subcommand",
    "user executing the script",
    "acl failure",
    "no permissions",
    "not allowed",
    "disabled",
    "db index",
    "password",
];

impl RefusalClass {
    const COUNT: usize = 8;

    pub(crate) fn of(error: &ServerError) -> Self {
        Self::of_code(error.code(), error.details().unwrap_or_default())
    }

    /// `details` is the text after the code. A script that was refused inside has the inner code there in Redis 6, and as
    /// its own code since Redis 7.
    fn of_code(code: &str, details: &str) -> Self {
        match code {
            "READONLY" | "LOADING" | "MASTERDOWN" | "NOMASTERLINK" => Self::NotMaster,
            "MOVED" => Self::Moved,
            "ASK" | "TRYAGAIN" => Self::Migrating,
            "CLUSTERDOWN" => Self::ClusterDown,
            "OOM" | "NOREPLICAS" | "NOGOODSLAVE" | "MISCONF" => Self::NotWritable,
            "NOAUTH" | "WRONGPASS" | "NOPERM" | "NOPROTO" | "DENIED" | "CROSSSLOT" | "WRONGTYPE" => Self::Misconfigured,
            "BUSY" => Self::Busy,
            "ERR" => match inner_code(details) {
                Some((code, details)) => Self::of_code(code, details),
                None => Self::of_text(&details.to_lowercase()),
            },
            _ => Self::Bug,
        }
    }

    fn of_text(details: &str) -> Self {
        match details {
            _ if details.contains("max number of clients") => Self::Busy,
            _ if MISCONFIGURED.iter().any(|part| details.contains(part)) => Self::Misconfigured,
            _ => Self::Bug,
        }
    }

    pub(crate) fn remedy(self) -> Option<Remedy> {
        match self {
            Self::NotMaster => Some(Remedy::Reconnect),
            Self::Moved | Self::ClusterDown => Some(Remedy::RefreshTopology),
            Self::Migrating | Self::NotWritable | Self::Misconfigured | Self::Busy | Self::Bug => None,
        }
    }
}

/// Redis 6 wraps what a script's command was refused with: `Error running script (call to f_…): @user_script:25:
/// @user_script: 25: -OOM command not allowed …`.
fn inner_code(details: &str) -> Option<(&str, &str)> {
    let (_, inner) = details.split_once("@user_script")?.1.split_once(" -")?;
    let (code, rest) = inner.split_once(' ').unwrap_or((inner, ""));
    (code != "ERR" && code.bytes().all(|byte| byte.is_ascii_uppercase())).then_some((code, rest))
}

/// What Redis said: to one command, or to the first one of a pipeline that it refused; `None`: it is no refusal.
fn refused(error: &RedisError) -> Option<ServerError> {
    error.clone().into_server_errors()?.first().map(|(_, refused)| refused.clone())
}

/// Redis's own words, or those of the client library if Redis has said nothing.
pub(crate) fn words(error: &RedisError) -> String {
    refused(error).as_ref().map_or_else(|| error.to_string(), refusal_words)
}

/// Redis's own words.
pub(crate) fn refusal_words(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

/// Turns what Redis refuses into what a caller of the broker gets, and says it in the log: one line a second for each
/// class, however many callers there are.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    lines: Mutex<[LinePace; RefusalClass::COUNT]>,
    /// What the last line of the log says.
    last_words: Mutex<Option<String>>,
}

/// Says of a line of the log that may come often whether it is written: one a second is.
#[derive(Debug, Default)]
pub(crate) struct LinePace {
    next: Option<Instant>,
}

impl LinePace {
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.next.is_none_or(|next| now >= next);
        if is_due {
            self.next = Some(now + LOG_EVERY);
        }
        is_due
    }
}

impl Refusals {
    /// Of one command of a pipeline.
    pub(crate) fn of(&self, error: &ServerError) -> BrokerError {
        self.refusal(error.code(), error.details().unwrap_or_default())
    }

    /// Of a whole read, or of an attempt to connect.
    pub(crate) fn of_error(&self, error: &RedisError) -> BrokerError {
        // The library keeps the code and the text of what it knows only, and of a pipeline neither.
        if let Some(refused) = refused(error) {
            return self.of(&refused);
        }
        if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
            return BrokerError::Unavailable;
        }
        match (error.kind(), error.code()) {
            (ErrorKind::RESP3NotSupported, _) => self.refusal("NOPROTO", &error.to_string()),
            // The library's own error for a database that Redis refuses.
            (_, Some(code)) => self.refusal(code, error.detail().unwrap_or_default()),
            (kind, None) => BrokerError::Protocol(format!("{kind:?}")),
        }
    }

    /// An error that has lost Redis's own words, and the last ones that are known: for the last line of a start that
    /// failed.
    pub(crate) fn with_last_words(&self, why: &BrokerError) -> String {
        self.last_words.lock().as_ref().map_or_else(|| why.to_string(), |words| format!("{why}: {words}"))
    }

    fn refusal(&self, code: &str, details: &str) -> BrokerError {
        use RefusalClass as C;
        // Redis's error texts name commands, but neither rooms nor payloads, except behind an unknown command.
        let details = details.split(", with args beginning with").next().unwrap_or_default();
        let class = C::of_code(code, details);
        // That slots move is no fault.
        if !matches!(class, C::Moved | C::Migrating) && self.is_line_due(class) {
            match class {
                C::Misconfigured | C::Bug => tracing::error!(?class, code, details, "Redis refuses a command"),
                _ => tracing::warn!(?class, code, details, "Redis refuses a command"),
            }
            *self.last_words.lock() = Some(format!("{code} {details}"));
        }
        match class {
            C::NotMaster | C::Moved | C::Migrating | C::ClusterDown => BrokerError::Unavailable,
            C::NotWritable => BrokerError::NotWritable,
            C::Misconfigured => BrokerError::Misconfigured,
            C::Busy => BrokerError::Overloaded,
            C::Bug => BrokerError::Protocol(format!("{code} {details}")),
        }
    }

    fn is_line_due(&self, class: RefusalClass) -> bool {
        self.lines.lock()[class as usize].is_due(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_class_also_inside_a_script_of_redis_6() {
        for (code, details, class) in [
            ("OOM", "command not allowed when used memory > 'maxmemory'.", RefusalClass::NotWritable),
            ("NOREPLICAS", "Not enough good replicas to write.", RefusalClass::NotWritable),
            ("MISCONF", "Redis is configured to save RDB snapshots, but …", RefusalClass::NotWritable),
            ("READONLY", "You can't write against a read only replica.", RefusalClass::NotMaster),
            ("LOADING", "Redis is loading the dataset in memory", RefusalClass::NotMaster),
            ("MASTERDOWN", "Link with MASTER is down", RefusalClass::NotMaster),
            ("CLUSTERDOWN", "Hash slot not served", RefusalClass::ClusterDown),
            ("MOVED", "3999 127.0.0.1:6381", RefusalClass::Moved),
            ("TRYAGAIN", "Multiple keys request during rehashing of slot", RefusalClass::Migrating),
            ("NOPERM", "this user has no permissions to run the 'xadd' command", RefusalClass::Misconfigured),
            ("WRONGTYPE", "Operation against a key holding the wrong kind of value", RefusalClass::Misconfigured),
            ("ERR", "unknown command 'SPUBLISH', with args beginning with: ", RefusalClass::Misconfigured),
            (
                "ERR",
                "Unknown Redis command called from script script: 1, on @user_script:1.",
                RefusalClass::Misconfigured,
            ),
            ("ERR", "Unknown command called from script script: on @user_script:1.", RefusalClass::Misconfigured),
            (
                "ERR",
                "The user executing the script can't run this command or subcommand script: 1, on @user_script:1.",
                RefusalClass::Misconfigured,
            ),
            (
                "ERR",
                "The user executing the script can't access at least one of the keys mentioned in the command arguments",
                RefusalClass::Misconfigured,
            ),
            (
                "ERR",
                "The user executing the script can't publish to the channel mentioned in the command script: 1",
                RefusalClass::Misconfigured,
            ),
            (
                "ERR",
                "ACL failure in script: User u has no permissions to run the 'xadd' command script: on @user_script:1.",
                RefusalClass::Misconfigured,
            ),
            ("ERR", "ACL failure in script: No permissions to access a key script: 1", RefusalClass::Misconfigured),
            ("ERR", "DB index is out of range", RefusalClass::Misconfigured),
            ("BUSY", "Redis is busy running a script.", RefusalClass::Busy),
            ("ERR", "max number of clients reached", RefusalClass::Busy),
            ("ERR", "wrong number of arguments", RefusalClass::Bug),
            ("SOMETHING", "new", RefusalClass::Bug),
            (
                "ERR",
                "Error running script (call to f_1): @user_script:25: @user_script: 25: -OOM command not allowed",
                RefusalClass::NotWritable,
            ),
            (
                "ERR",
                "Error running script (call to f_1): @user_script:25: @user_script: 25: -READONLY You can't write",
                RefusalClass::NotMaster,
            ),
            (
                "ERR",
                "Error running script (call to f_1): @user_script:3: @user_script: 3: -ERR value is not an integer",
                RefusalClass::Bug,
            ),
        ] {
            assert_eq!(RefusalClass::of_code(code, details), class, "{code} {details}");
        }
    }

    /// A read of a server that was no master any more was answered "unavailable", and a write "takes no writes".
    #[test]
    fn a_read_and_a_write_are_answered_alike() {
        for code in [
            "READONLY",
            "LOADING",
            "MASTERDOWN",
            "CLUSTERDOWN",
            "MOVED",
            "ASK",
            "TRYAGAIN",
            "OOM",
            "MISCONF",
            "NOPERM",
            "BUSY",
            "SOMETHING",
        ] {
            let Ok(redis::Value::ServerError(error)) =
                redis::parse_redis_value(format!("-{code} 1 127.0.0.1:1\r\n").as_bytes())
            else {
                panic!("{code} is an error");
            };
            let refusals = Refusals::default();
            assert_eq!(refusals.of(&error), refusals.of_error(&error.into()), "{code}");
        }
    }

    #[test]
    fn the_log_has_one_line_a_second_for_each_class() {
        let refusals = Refusals::default();
        let lines = (0..100).filter(|_| refusals.is_line_due(RefusalClass::Bug)).count();
        assert_eq!((lines, refusals.is_line_due(RefusalClass::Busy)), (1, true));
    }
}
