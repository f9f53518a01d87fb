//! The addresses of Redis as an operator writes them, and the settings of every connection. Addresses are parsed before
//! anything connects; neither `Debug` nor errors show a password. Nothing here resolves names or connects.
//!
//! ```text
//! redis[s]://[[user]:password@]host[:6379][/database]
//! redis[s]+sentinel://[[user]:password@]host[:26379][,host...]/master-name[/database]
//! redis[s]+cluster://[[user]:password@]host[:6379][,host...]
//! ```

use crate::redis::ConfigError;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisResult, TlsCertificates,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use std::{fmt, time::Duration};

/// The kernel ends a connection whose peer has acknowledged nothing for this long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);

/// What an address names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddressKind {
    /// One server, a master.
    Server,
    /// Sentinels, which know the current master of this name.
    Sentinel(String),
    /// Some members of a cluster, which know all the others.
    Cluster,
}

/// One server, one group of sentinels or one cluster.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) kind: AddressKind,
    /// The servers, sentinels or cluster members that are named, with the credentials and the database of the masters.
    pub(crate) hosts: Vec<ConnectionInfo>,
}

impl Address {
    /// Reads one or several addresses, separated by commas or blanks.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Self>, ConfigError> {
        // Hosts are separated by commas too, so an address ends where the next scheme begins.
        let scheme = |end: usize| {
            let before = text[..end].trim_end_matches(|c: char| c.is_ascii_lowercase() || c == '+' || c == '-');
            before.len()
        };
        let mut begins: Vec<usize> = text.match_indices("://").map(|(end, _)| scheme(end)).collect();
        if begins.first() != Some(&0) {
            return Err(ConfigError::Malformed);
        }
        begins.push(text.len());
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        let mut addresses = Vec::new();
        for (at, ends) in begins.windows(2).enumerate() {
            let piece = &text[ends[0]..ends[1]];
            if at + 2 < begins.len() && !piece.ends_with(separator) {
                return Err(ConfigError::Malformed);
            }
            addresses.push(Self::parse(piece.trim_end_matches(separator))?);
        }
        if addresses.len() > 1 && addresses.iter().any(|address| address.kind == AddressKind::Cluster) {
            return Err(ConfigError::Cluster);
        }
        let mut names: Vec<String> = addresses.iter().map(Self::name).collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::Duplicate);
        }
        Ok(addresses)
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let (scheme, rest) = text.split_once("://").ok_or(ConfigError::Malformed)?;
        let (scheme, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        if !matches!(scheme, "redis" | "rediss") || rest.contains(['?', '#']) {
            return Err(ConfigError::Malformed);
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let (kind, database, port) = match kind {
            "" => (AddressKind::Server, path, 6379),
            "sentinel" => {
                let (master_name, database) = path.split_once('/').unwrap_or((path, ""));
                if master_name.is_empty() {
                    return Err(ConfigError::MasterName);
                }
                (AddressKind::Sentinel(master_name.to_owned()), database, 26379)
            }
            "cluster" if path.is_empty() => (AddressKind::Cluster, "", 6379),
            "cluster" => return Err(ConfigError::Cluster),
            _ => return Err(ConfigError::Malformed),
        };
        if !database.bytes().all(|b| b.is_ascii_digit()) || (kind == AddressKind::Server && hosts.contains(',')) {
            return Err(ConfigError::Malformed);
        }
        let host = |host: &str| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            let port = if has_port { String::new() } else { format!(":{port}") };
            let at = if user.is_empty() { "" } else { "@" };
            let url = format!("{scheme}://{user}{at}{host}{port}/{database}");
            let info = url.into_connection_info().map_err(|_| ConfigError::Malformed)?;
            if host.is_empty() || matches!(info.addr(), ConnectionAddr::Unix(_)) {
                return Err(ConfigError::Malformed);
            }
            // No CLIENT SETINFO: after it the library reports that the connection has ended, and not why Redis, which had
            // said so in its first reply, has ended it.
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
            Ok(info.set_redis_settings(settings))
        };
        let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { kind, hosts })
    }

    fn host_names(&self) -> String {
        self.hosts.iter().map(|host| host.addr().to_string()).collect::<Vec<_>>().join(",")
    }

    /// The database of the masters.
    pub(crate) fn database(&self) -> i64 {
        self.hosts.first().map_or(0, |host| host.redis_settings().db())
    }

    /// The name by which rooms are divided among several addresses. If it changes, rooms move to another Redis and
    /// leave their data behind.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            AddressKind::Sentinel(master_name) => master_name.clone(),
            AddressKind::Server | AddressKind::Cluster => self.host_names(),
        }
    }

    /// Accepts certificates that one of these authorities (PEM) has signed. Returns whether the address uses TLS.
    pub(crate) fn trust(&mut self, authorities: &[u8]) -> Result<bool, ConfigError> {
        let mut tls = false;
        for host in &mut self.hosts {
            if matches!(host.addr(), ConnectionAddr::TcpTls { .. }) {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(authorities.to_vec()) };
                let client =
                    Client::build_with_tls(host.clone(), certificates).map_err(|_| ConfigError::Authorities)?;
                *host = client.get_connection_info().clone();
                tls = true;
            }
        }
        Ok(tls)
    }
}

/// The credentials and certificates of `like` for another host.
pub(crate) fn with_host(like: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    like.clone().set_addr(addr)
}

/// Whether both lead to the same host and port.
pub(crate) fn is_same_server(one: &ConnectionInfo, other: &ConnectionInfo) -> bool {
    one.addr().to_string() == other.addr().to_string()
}

/// A client with the settings that every connection has, those of the read pool too.
pub(crate) fn client(server: ConnectionInfo) -> RedisResult<Client> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(3);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive).set_user_timeout(TCP_USER_TIMEOUT);
    Client::open(server.set_tcp_settings(tcp))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.host_names();
        match &self.kind {
            AddressKind::Server => f.write_str(&hosts),
            AddressKind::Sentinel(master_name) => write!(f, "{hosts}/{master_name}"),
            AddressKind::Cluster => write!(f, "the cluster of {hosts}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, ConfigError> {
        Address::parse_all(text).map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        for (text, shown) in [
            ("redis://localhost", &["localhost:6379"][..]),
            ("redis://[::1]:6380/3", &["::1:6380"]),
            ("rediss://ann:s3,cret@cache.internal/", &["cache.internal:6379"]),
            ("redis+sentinel://a,b:1/main", &["a:26379,b:1/main"]),
            ("rediss+sentinel://:pw@a:1,b:2/main/5,redis://c", &["a:1,b:2/main", "c:6379"]),
            ("redis+cluster://a:1,b", &["the cluster of a:1,b:6379"]),
            ("redis://a:1, redis://b:2 rediss://c:3", &["a:1", "b:2", "c:3"]),
        ] {
            assert_eq!(
                read(text).as_deref(),
                Ok(&shown.iter().map(ToString::to_string).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
        let address = &Address::parse_all("redis+sentinel://ann:p%40w@a,b/main/3").unwrap()[0];
        assert_eq!(address.kind, AddressKind::Sentinel("main".into()));
        for host in &address.hosts {
            let settings = host.redis_settings();
            assert_eq!((settings.username(), settings.password(), settings.db()), (Some("ann"), Some("p@w"), 3));
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for (text, why) in [
            ("http://a", ConfigError::Malformed),
            ("localhost:6379", ConfigError::Malformed),
            ("redis://", ConfigError::Malformed),
            ("redis://a/x", ConfigError::Malformed),
            ("redis://a:b", ConfigError::Malformed),
            ("redis://a,b", ConfigError::Malformed),
            ("redis://a?x=1", ConfigError::Malformed),
            ("redis://a;redis://b", ConfigError::Malformed),
            ("redis+sentinel://a,,b/main", ConfigError::Malformed),
            ("redis+other://a", ConfigError::Malformed),
            ("redis+sentinel://a:26379", ConfigError::MasterName),
            ("redis+cluster://a/1", ConfigError::Cluster),
            ("redis+cluster://a,redis://b", ConfigError::Cluster),
            ("redis://a,redis://b/1,redis://a:6379/2", ConfigError::Duplicate),
            ("redis+sentinel://a/main,redis+sentinel://b/main", ConfigError::Duplicate),
        ] {
            assert_eq!(read(text).err(), Some(why), "{text}");
        }
    }
}
