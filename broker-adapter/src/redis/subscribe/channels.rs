//! Subscribes and unsubscribes channels: all with one command, or in a cluster with one command each. The channels of
//! one SSUBSCRIBE must share a slot, and the client library does not know how many confirmations one brings.

use redis::{ErrorKind, Pipeline, PushKind, RedisResult, Value, aio::MultiplexedConnection};

/// Returns when every channel is confirmed.
pub(crate) async fn subscribe(
    conn: &mut MultiplexedConnection,
    is_sharded: bool,
    channels: Vec<String>,
) -> RedisResult<()> {
    if is_sharded {
        return one_by_one(conn, "SSUBSCRIBE", &PushKind::SSubscribe, &channels).await;
    }
    conn.subscribe(channels).await
}

/// Returns when every channel is left.
pub(crate) async fn unsubscribe(
    conn: &mut MultiplexedConnection,
    is_sharded: bool,
    channels: Vec<String>,
) -> RedisResult<()> {
    if is_sharded {
        return one_by_one(conn, "SUNSUBSCRIBE", &PushKind::SUnsubscribe, &channels).await;
    }
    conn.unsubscribe(channels).await
}

/// Fails unless each reply is the confirmation of its own channel. When a slot moves, the server sends unsubscriptions
/// of its own, and the client library takes one for the reply to whatever command is waiting.
async fn one_by_one(
    conn: &mut MultiplexedConnection,
    command: &str,
    confirmation: &PushKind,
    channels: &[String],
) -> RedisResult<()> {
    let mut pipe = Pipeline::with_capacity(channels.len());
    for channel in channels {
        pipe.cmd(command).arg(channel);
    }
    let replies = conn.send_packed_commands(&pipe, 0, channels.len()).await?;
    for (channel, reply) in channels.iter().zip(replies) {
        match reply {
            Value::Push { kind, data } if kind == *confirmation && is(data.first(), channel) => {}
            Value::ServerError(error) => return Err(error.into()),
            _ => return Err((ErrorKind::UnexpectedReturnType, "the reply to another command").into()),
        }
    }
    Ok(())
}

fn is(value: Option<&Value>, channel: &str) -> bool {
    matches!(value, Some(Value::BulkString(name)) if name == channel.as_bytes())
}
