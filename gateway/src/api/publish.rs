//! Publishing by HTTP: one message, or a batch with a receipt for each message.

use super::path::{Named, named};
use crate::{
    http::respond,
    node::{Node, buffer::publish_once},
    policy::rights::{self, Act},
    protocol::{
        error::{ErrorCode, Refusal},
        native,
    },
    time::unix_ms,
};
use axum::{
    body::Body,
    extract::{
        Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, Response, StatusCode, header},
};
use bytes::Bytes;
use fanfare_broker::{IdempotencyKey, Publish, Room};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of a batch's body.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Messages in one batch.
const BATCH_MAX: usize = 100;
/// The longest `?buffer=`: half the time of a request, so that the response always gets out.
const WAIT_MAX: Duration = Duration::from_secs(5);
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// `curl -d` sends a form's type by itself, whatever the body is.
const CURL_DEFAULT: &str = "application/x-www-form-urlencoded";

/// The query of a publish.
#[derive(Deserialize)]
pub(super) struct Params {
    event: Option<String>,
    buffer: Option<String>,
}

/// The query of a batch.
#[derive(Deserialize)]
pub(super) struct BatchParams {
    buffer: Option<String>,
}

/// A message to publish, as a batch has it. Replies to malformed ones name this type.
#[derive(Deserialize)]
struct PublishItem<'a> {
    #[serde(borrow)]
    room: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
}

/// What the response says about one message.
#[derive(Serialize)]
#[serde(untagged)]
enum Receipt<'a> {
    Published {
        room: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
    Refused {
        code: ErrorCode,
        detail: Cow<'static, str>,
        retryable: bool,
    },
}

/// `POST /v1/rooms/{room}`: the body is the data.
pub(super) async fn one(
    State(node): State<Arc<Node>>,
    path: Named<String>,
    params: Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response<Body>, Refusal> {
    let Ok(Query(Params { event, buffer })) = params else { return Err(wrong_query()) };
    let body = body.map_err(|why| unreadable(&why, node.limits.message_bytes))?;
    let text = std::str::from_utf8(&body).map_err(|_| Refusal::bad_request("the body is not UTF-8"))?;
    let data = data(text, headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()))?;
    let key = headers.get(IDEMPOTENCY_KEY).map(|key| key.to_str().map(Cow::Borrowed)).transpose();
    let key = key.map_err(|_| Refusal::bad_request("Idempotency-Key is not ASCII"))?;
    let wait = wait(buffer)?;
    let item = PublishItem { room: named(path)?.into(), data: &data, event: event.map(Cow::Owned), key };
    Ok(respond(&publish(&node, item, wait).await?))
}

/// `POST /v1/publish`: an array of messages; the response is an array of receipts.
pub(super) async fn batch(
    State(node): State<Arc<Node>>,
    params: Result<Query<BatchParams>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response<Body>, Refusal> {
    let Query(BatchParams { buffer }) = params.map_err(|_| wrong_query())?;
    let wait = wait(buffer)?;
    let body = body.map_err(|why| unreadable(&why, BATCH_BYTES))?;
    let items: Vec<&RawValue> = serde_json::from_slice(&body)
        .map_err(|why| Refusal::bad_request(format!("the body is not a JSON array: {why}")))?;
    if !(1..=BATCH_MAX).contains(&items.len()) {
        return Err(Refusal::bad_request(format!("a batch has 1 to {BATCH_MAX} messages")));
    }
    let receipts = join_all(items.into_iter().map(|item| receipt(&node, item, wait))).await;
    Ok(respond(&receipts))
}

async fn receipt<'a>(node: &Node, item: &'a RawValue, wait: Option<Duration>) -> Receipt<'a> {
    let published = match serde_json::from_str(item.get()) {
        Ok(item) => publish(node, item, wait).await,
        Err(why) => Err(Refusal::bad_request(format!("not a message: {why}"))),
    };
    published.unwrap_or_else(|Refusal { code, message: detail, .. }| Receipt::Refused {
        code,
        detail,
        retryable: code.retryable(),
    })
}

/// The body as JSON: unchanged if its type is JSON or missing, otherwise as a JSON string.
fn data<'a>(text: &'a str, content_type: Option<&str>) -> Result<Cow<'a, RawValue>, Refusal> {
    let kind = content_type.map_or("application/json", |value| value.split(';').next().unwrap_or_default().trim());
    let is_json = kind.eq_ignore_ascii_case("application/json") || kind.eq_ignore_ascii_case(CURL_DEFAULT);
    let data = if is_json { serde_json::from_str(text).map(Cow::Borrowed) } else { to_raw_value(text).map(Cow::Owned) };
    data.map_err(|_| Refusal::bad_request("the body is not one JSON value"))
}

/// The value of `?buffer=`, such as `5s` or `500ms`: how long a message may wait for the backplane.
fn wait(buffer: Option<String>) -> Result<Option<Duration>, Refusal> {
    let Some(text) = buffer else { return Ok(None) };
    let wait = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => ms.parse().ok().map(Duration::from_millis),
        (None, Some(s)) => s.parse().ok().map(Duration::from_secs),
        (None, None) => None,
    };
    match wait.filter(|wait| !wait.is_zero() && *wait <= WAIT_MAX) {
        None => Err(Refusal::bad_request("buffer is a time such as 500ms or 5s, and 5s at most")),
        wait => Ok(wait),
    }
}

async fn publish<'a>(node: &Node, item: PublishItem<'a>, wait: Option<Duration>) -> Result<Receipt<'a>, Refusal> {
    let began = Instant::now();
    let room = Room::parse(&item.room)?;
    rights::permit(None, Act::Publish, &room)?;
    native::check_size(item.data.get(), node.limits.message_bytes)?;
    let event = native::event_name(item.event)?;
    let key =
        item.key.map(|key| IdempotencyKey::parse(&key).ok_or_else(|| Refusal::bad_request("key has 1 to 64 bytes")));
    let publish = Publish {
        retention: node.classes.of(room.as_str()).history,
        room,
        author: None,
        ts_ms: unix_ms(),
        payload: native::payload(item.data.get(), event.as_deref(), native::Sender::Backend).into(),
        key: key.transpose()?,
    };
    node.metrics.published_http.inc();
    let handed_over = Instant::now();
    let published = match wait {
        Some(wait) => node.buffer.publish(&*node.broker, publish, wait).await?,
        None => publish_once(&*node.broker, publish).await?,
    };
    node.metrics.backplane_publish_seconds.observe(handed_over.elapsed().as_secs_f64());
    node.metrics.publish_seconds.observe(began.elapsed().as_secs_f64());
    Ok(Receipt::Published { room: item.room, cursor: published.cursor.map(|cursor| cursor.to_string()) })
}

fn wrong_query() -> Refusal {
    Refusal::bad_request("the URL has event or buffer twice")
}

fn unreadable(why: &BytesRejection, limit: usize) -> Refusal {
    if why.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Refusal::new(ErrorCode::MessageTooLarge, format!("data has more than {limit} bytes"));
    }
    Refusal::bad_request("the body could not be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_time_up_to_five_seconds() {
        let wait = |text: &str| wait(Some(text.to_owned()));
        assert_eq!(wait("5s").unwrap(), Some(WAIT_MAX));
        assert_eq!(wait("500ms").unwrap(), Some(Duration::from_millis(500)));
        for bad in ["", "5", "s", "0s", "6s", "5001ms", "-1s", "1.5s", "5 s"] {
            assert!(wait(bad).is_err(), "{bad}");
        }
    }
}
