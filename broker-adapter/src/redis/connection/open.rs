//! Opens a connection: finds the master, connects, loads the scripts, and makes sure that the server is a master. Also
//! asks an open connection whether it is still alive.

use crate::{
    BrokerError,
    redis::{
        CONNECT_MAX, ConnectError, Fence, NodeContext, Target, address::client, connection::status::FailedAttempt,
        connection::status::Server, connection::supervisor::DEAD_AFTER, connection::supervisor::Input, errors::words,
    },
};
use redis::{
    AsyncConnectionConfig, PushInfo, RedisError, Value,
    aio::{MultiplexedConnection, SendError},
};
use std::time::Duration;
use tokio::time::timeout;

/// Bytes that may wait in the connection's write buffer before the next batch waits: a full batch of usual messages.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// A connection that is ready for use.
#[derive(Clone)]
pub(crate) struct OpenConnection {
    pub(crate) conn: MultiplexedConnection,
    pub(crate) server: Server,
    /// `ROLE`, whose reply also shows that a master was demoted; `PING` where the user has no right to it.
    probe: &'static str,
}

/// Asks for the current master and connects to it. `on_push` takes what Redis sends unasked, in the connection's own
/// task.
pub(crate) async fn open(
    target: Target,
    context: &NodeContext,
    response_timeout: Duration,
    on_push: impl Fn(PushInfo) + Send + Sync + 'static,
) -> Result<OpenConnection, FailedAttempt> {
    let away = |why: String| (why, BrokerError::Unavailable);
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(response_timeout))
        .set_write_backpressure_boundary(WRITE_BUFFER_BYTES)
        .set_push_sender(move |push| {
            on_push(push);
            Ok::<(), SendError>(())
        });
    let mut name = target.name();
    let handshake = async {
        let address = target.find().await.map_err(away)?;
        name = address.addr().to_string();
        let conn = async {
            let mut conn = client(address.clone())?.get_multiplexed_async_connection_with_config(&settings).await?;
            // All in one round trip: members wait for it after every loss of the connection.
            let mut pipe = redis::pipe();
            pipe.cmd("ROLE").cmd("INFO").arg("server");
            context.builder.scripts.add_to(&mut pipe);
            let mut replies = conn.send_packed_commands(&pipe, 0, pipe.len()).await?.into_iter();
            let (role, info) = (replies.next().unwrap_or(Value::Nil), replies.next().unwrap_or(Value::Nil));
            let refused =
                replies.find_map(|loaded| if let Value::ServerError(why) = loaded { Some(why) } else { None });
            refused.map_or(Ok((conn, role, info)), |why| Err(why.into()))
        };
        let (conn, role, info) = conn.await.map_err(|why: RedisError| (words(&why), meanwhile(context, &why)))?;
        Ok((address, conn, role, info))
    };
    let done = timeout(CONNECT_MAX, handshake).await.unwrap_or_else(|_| Err(away("no reply in time".to_owned())));
    let (address, conn, role, info) = match done {
        Ok(done) => done,
        Err((why, meanwhile)) => return Err((ConnectError::Refused { address: name, why }, meanwhile)),
    };
    if is_replica(&role) {
        return Err((ConnectError::Replica { address: name }, BrokerError::Unavailable));
    }
    let probe = if matches!(role, Value::ServerError(_)) { "PING" } else { "ROLE" };
    // Without a run id (a proxy hides it, or the user has no right to INFO) a restart shows only by the keys that it
    // lost.
    let info: String = redis::from_redis_value(info).unwrap_or_default();
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or("-");
    Ok(OpenConnection { conn, server: Server { address, fence: Fence::new(run_id.trim()) }, probe })
}

/// What callers get while Redis answers attempts to connect like this. The log has Redis's own words.
fn meanwhile(context: &NodeContext, why: &RedisError) -> BrokerError {
    match context.refusals.of_error(why) {
        refused @ (BrokerError::Misconfigured | BrokerError::Overloaded) => refused,
        _ => BrokerError::Unavailable,
    }
}

impl OpenConnection {
    /// Asks whether the connection is alive and still leads to a master. The supervisor decides how long the reply may
    /// take, so this function waits longer.
    pub(crate) async fn probe(mut self) -> Input {
        self.conn.set_response_timeout(DEAD_AFTER * 2);
        match self.conn.send_packed_command(&redis::cmd(self.probe)).await {
            Ok(role) if is_replica(&role) => Input::Lost,
            Ok(_) => Input::Answered,
            Err(_) => Input::Lost,
        }
    }
}

fn is_replica(role: &Value) -> bool {
    let Value::Array(parts) = role else { return false };
    matches!(parts.first(), Some(Value::BulkString(name)) if name != b"master")
        || matches!(parts.first(), Some(Value::SimpleString(name)) if name != "master")
}
