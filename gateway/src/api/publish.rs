//! Publishing by HTTP: one message, or a batch with a receipt for each message.

use super::{
    buffer,
    path::{Named, room},
    state::Api,
};
use crate::{
    http::problem::json,
    node::Node,
    policy::rights::{self, Act},
    protocol::{
        error::{ErrorCode, Refusal},
        json::{is_value, put_string},
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
use fanfare_broker::{IdempotencyKey, Publish, Published, Room};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

/// Bytes of a batch's body.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Messages in one batch.
const BATCH_MAX: usize = 100;
const IDEMPOTENCY_KEY: &str = "idempotency-key";

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

/// A checked message on its way to the broker.
struct Order {
    room: Room,
    payload: Vec<u8>,
    key: Option<IdempotencyKey>,
    /// How long it may wait for the backplane.
    wait: Option<Duration>,
}

/// What the response says about one message.
#[derive(Serialize)]
#[serde(untagged)]
enum Receipt<'a> {
    Published {
        room: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
    Refused {
        code: ErrorCode,
        detail: &'a str,
        retryable: bool,
    },
}

/// `POST /v1/rooms/{room}`: the body is the data.
pub(super) async fn one(
    State(api): State<Api>,
    path: Named<String>,
    params: Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response<Body>, Refusal> {
    let Ok(Query(Params { event, buffer })) = params else { return Err(wrong_query()) };
    let body = body.map_err(|why| unreadable(&why, api.node.limits.message_bytes))?;
    let text = std::str::from_utf8(&body).map_err(|_| Refusal::bad_request("the body is not UTF-8"))?;
    let data = data(text, headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()))?;
    let key = match headers.get(IDEMPOTENCY_KEY) {
        Some(key) => Some(key.to_str().map_err(|_| Refusal::bad_request("Idempotency-Key is not ASCII"))?),
        None => None,
    };
    let wait = buffer.as_deref().map(buffer::wait).transpose()?;
    let order = Order { wait, ..order(&api.node, room(path)?, &data, event.as_deref(), key)? };
    let room = order.room.clone();
    let published = publish(&api, order).await?;
    let cursor = published.cursor.map(|cursor| cursor.to_string());
    let receipt = Receipt::Published { room: room.as_str(), cursor };
    Ok(json(StatusCode::OK, serde_json::to_vec(&receipt).unwrap_or_default()))
}

/// One message of a batch.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    room: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
}

/// `POST /v1/publish`: an array of messages; the response is an array of receipts.
pub(super) async fn batch(
    State(api): State<Api>,
    params: Result<Query<BatchParams>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response<Body>, Refusal> {
    let Query(BatchParams { buffer }) = params.map_err(|_| wrong_query())?;
    let wait = buffer.as_deref().map(buffer::wait).transpose()?;
    let body = body.map_err(|why| unreadable(&why, BATCH_BYTES))?;
    let items: Vec<&RawValue> = serde_json::from_slice(&body)
        .map_err(|why| Refusal::bad_request(format!("the body is not a JSON array: {why}")))?;
    if !(1..=BATCH_MAX).contains(&items.len()) {
        return Err(Refusal::bad_request(format!("a batch has 1 to {BATCH_MAX} messages")));
    }
    let results = join_all(items.iter().map(|item| publish_item(&api, item, wait))).await;
    let receipts: Vec<Receipt<'_>> = results.iter().map(receipt).collect();
    Ok(json(StatusCode::OK, serde_json::to_vec(&receipts).unwrap_or_default()))
}

async fn publish_item(api: &Api, item: &RawValue, wait: Option<Duration>) -> Result<(Room, Published), Refusal> {
    let item: Item<'_> =
        serde_json::from_str(item.get()).map_err(|why| Refusal::bad_request(format!("not a message: {why}")))?;
    let room = Room::parse(&item.room)?;
    let order = order(&api.node, room.clone(), item.data.get(), item.event.as_deref(), item.key.as_deref())?;
    Ok((room, publish(api, Order { wait, ..order }).await?))
}

fn receipt(result: &Result<(Room, Published), Refusal>) -> Receipt<'_> {
    match result {
        Ok((room, published)) => {
            Receipt::Published { room: room.as_str(), cursor: published.cursor.map(|cursor| cursor.to_string()) }
        }
        Err(refusal) => {
            Receipt::Refused { code: refusal.code, detail: &refusal.message, retryable: refusal.code.retryable() }
        }
    }
}

/// The body as JSON: unchanged if its type is JSON or missing, otherwise as a JSON string.
fn data<'a>(text: &'a str, content_type: Option<&str>) -> Result<Cow<'a, str>, Refusal> {
    let kind = content_type.map_or("application/json", |value| value.split(';').next().unwrap_or_default().trim());
    // `curl -d` sends a form's type by itself, whatever the body is.
    let is_json = kind.eq_ignore_ascii_case("application/json") || kind.eq_ignore_ascii_case(CURL_DEFAULT);
    if is_json {
        return match is_value(text) {
            true => Ok(Cow::Borrowed(text)),
            false => Err(Refusal::bad_request("the body is not one JSON value")),
        };
    }
    let mut out = Vec::with_capacity(text.len() + 2);
    put_string(&mut out, text);
    String::from_utf8(out).map(Cow::Owned).map_err(|_| Refusal::bad_request("the body is not UTF-8"))
}

const CURL_DEFAULT: &str = "application/x-www-form-urlencoded";

fn order(node: &Node, room: Room, data: &str, event: Option<&str>, key: Option<&str>) -> Result<Order, Refusal> {
    rights::permit(None, Act::Publish, &room)?;
    native::check_size(data, node.limits.message_bytes)?;
    let event = native::event_name(event.map(Cow::Borrowed))?;
    let key = key.map(|key| IdempotencyKey::parse(key).ok_or_else(|| Refusal::bad_request("key has 1 to 64 bytes")));
    let payload = native::payload(data, event.as_deref(), native::Sender::Backend);
    Ok(Order { room, payload, key: key.transpose()?, wait: None })
}

async fn publish(Api { node, buffer }: &Api, order: Order) -> Result<Published, Refusal> {
    let Order { room, payload, key, wait } = order;
    let began = Instant::now();
    let publish = Publish {
        retention: node.classes.of(room.as_str()).history,
        room,
        author: None,
        ts_ms: unix_ms(),
        payload: payload.into(),
        key,
    };
    node.metrics.published_http.inc();
    let handed_over = Instant::now();
    let published = match wait {
        Some(wait) => buffer.publish(&*node.broker, publish, wait).await?,
        None => buffer::publish_once(&*node.broker, publish).await?,
    };
    node.metrics.backplane_publish_seconds.observe(handed_over.elapsed().as_secs_f64());
    node.metrics.publish_seconds.observe(began.elapsed().as_secs_f64());
    Ok(published)
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
