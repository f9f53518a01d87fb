//! `QueryClient`: short questions to sentinels and cluster members, over a connection that is kept for the next
//! question.

use crate::redis::address::client;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisResult,
    Value, aio::MultiplexedConnection,
};
use std::{collections::HashMap, time::Duration};
use tokio::time::timeout;

/// How long a question may take. Several servers are asked at the same time, so a silent one delays no other.
const QUERY_MAX: Duration = Duration::from_millis(500);
/// The interval in which sentinels and clusters are asked. After a failover deliveries are back within one interval and
/// one handshake.
pub(crate) const REFRESH_EVERY: Duration = Duration::from_millis(250);

/// Asks servers short questions. Keeps one connection to each.
#[derive(Default)]
pub(crate) struct QueryClient {
    is_for_sentinels: bool,
    open: Mutex<HashMap<String, MultiplexedConnection>>,
}

impl QueryClient {
    /// A client for sentinels. They may have other users than their masters, or no users at all.
    pub(crate) fn for_sentinels() -> Self {
        Self { is_for_sentinels: true, ..Self::default() }
    }

    /// Returns the replies to all commands. If one is an error reply, the whole question fails.
    pub(crate) async fn ask(&self, host: &ConnectionInfo, question: &Pipeline) -> RedisResult<Vec<Value>> {
        let name = host.addr().to_string();
        let asking = async {
            let known = self.open.lock().get(&name).cloned();
            let mut conn = match known {
                Some(conn) => conn,
                None => self.connect(host).await?,
            };
            let replies = conn.send_packed_commands(question, 0, question.len()).await?;
            self.open.lock().insert(name.clone(), conn);
            Ok(replies)
        };
        let late = || RedisError::from((ErrorKind::Io, "no reply in time"));
        let replies = timeout(QUERY_MAX, asking).await.unwrap_or_else(|_| Err(late()));
        if replies.is_err() {
            self.open.lock().remove(&name);
        }
        replies?.into_iter().map(Value::extract_error).collect()
    }

    /// Closes the connections to all other servers.
    pub(crate) fn retain(&self, hosts: &[ConnectionInfo]) {
        let names: Vec<String> = hosts.iter().map(|host| host.addr().to_string()).collect();
        self.open.lock().retain(|name, _| names.contains(name));
    }

    async fn connect(&self, host: &ConnectionInfo) -> RedisResult<MultiplexedConnection> {
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(Some(QUERY_MAX)).set_response_timeout(Some(QUERY_MAX));
        if !self.is_for_sentinels {
            return client(host.clone())?.get_multiplexed_async_connection_with_config(&settings).await;
        }
        let info = host.redis_settings();
        let anonymous = host.clone().set_redis_settings(RedisConnectionInfo::default());
        let mut conn = Client::open(anonymous)?.get_multiplexed_async_connection_with_config(&settings).await?;
        if let Some(password) = info.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(info.username()).arg(password);
            // A sentinel without users refuses every AUTH. One that has other users will refuse the question.
            let _: RedisResult<Value> = conn.send_packed_command(&auth).await;
        }
        Ok(conn)
    }
}
