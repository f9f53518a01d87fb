//! Subscribing and unsubscribing channels: all in one command, or in a cluster one by one, since the channels of one
//! SSUBSCRIBE must share a slot and the client library does not know how many confirmations one brings.

use crate::redis::commands::Maker;
use redis::{ErrorKind, Pipeline, PushKind, RedisResult, Value, aio::MultiplexedConnection};

/// Answers when every channel is confirmed.
pub(crate) async fn subscribe(
    conn: &mut MultiplexedConnection,
    maker: &Maker,
    channels: Vec<String>,
) -> RedisResult<()> {
    if maker.is_sharded() {
        return one_by_one(conn, "SSUBSCRIBE", &PushKind::SSubscribe, &channels).await;
    }
    conn.subscribe(channels).await
}

/// Answers when every channel is left.
pub(crate) async fn unsubscribe(
    conn: &mut MultiplexedConnection,
    maker: &Maker,
    channels: Vec<String>,
) -> RedisResult<()> {
    if maker.is_sharded() {
        return one_by_one(conn, "SUNSUBSCRIBE", &PushKind::SUnsubscribe, &channels).await;
    }
    conn.unsubscribe(channels).await
}

/// Fails unless each answer is the confirmation of its own channel: see `Rails::receiver`.
async fn one_by_one(
    conn: &mut MultiplexedConnection,
    command: &str,
    confirms: &PushKind,
    channels: &[String],
) -> RedisResult<()> {
    let mut pipe = Pipeline::with_capacity(channels.len());
    for channel in channels {
        pipe.cmd(command).arg(channel);
    }
    let answers = conn.send_packed_commands(&pipe, 0, channels.len()).await?;
    for (channel, answer) in channels.iter().zip(answers) {
        match answer {
            Value::Push { kind, data } if kind == *confirms && is(data.first(), channel) => {}
            Value::ServerError(error) => return Err(error.into()),
            _ => return Err((ErrorKind::UnexpectedReturnType, "the answer to something else").into()),
        }
    }
    Ok(())
}

fn is(value: Option<&Value>, channel: &str) -> bool {
    matches!(value, Some(Value::BulkString(name)) if name == channel.as_bytes())
}
