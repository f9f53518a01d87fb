//! The codec of the native protocol (docs/protocol.md): one JSON object in each frame. Decoding borrows from the frame.
//! The publisher's node lays out the JSON of a message once ([`payload`]); no other node parses it again.

use super::{FrameShape, end_event, json, name_event, put_frame};
use crate::protocol::{
    command::{
        Command, EVENT_BYTES_MAX, EXCLUDE_MAX, HISTORY_LIMIT, HISTORY_LIMIT_MAX, JoinOptions, PublishRequest,
        REQUEST_ID_MAX, Request, RequestId,
    },
    error::{ErrorCode, Refusal},
    event::Event,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use fanfare_broker::{Cursor, Page, Publication, Room, SessionId, User};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::{borrow::Cow, fmt, io::Write, str::FromStr};

/// Why a frame is not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// Not JSON, or JSON that is not an object: the session ends.
    NotOurProtocol,
    /// The refusal to send, with the request id if it could be read.
    Refused { id: RequestId, refusal: Refusal },
}

/// Every field of every command, as raw text. `type` decides which of them are read.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))] // they borrow from the text
struct Fields<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    room: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "even_null")]
    data: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    key: Option<&'a RawValue>,
    since: Option<&'a RawValue>,
    history: Option<&'a RawValue>,
    limit: Option<&'a RawValue>,
    presence: Option<&'a RawValue>,
    echo: Option<&'a RawValue>,
    exclude: Option<&'a RawValue>,
    token: Option<&'a RawValue>,
}

/// For `data`, where `null` is a value and does not mean that the field is absent.
fn even_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads one frame. A refusal names the field that is wrong.
pub(crate) fn decode(text: &str) -> Result<Command<'_>, DecodeError> {
    // serde also accepts an array for a struct, so this tests for '{'.
    let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
    let fields: Fields<'_> = match serde_json::from_str(text) {
        Ok(fields) if is_object => fields,
        Err(why) if is_object && why.is_data() => {
            // All fields are raw, so the only possible error in the data is a repeated field.
            let refusal = Refusal::bad_request("a field appears twice");
            return Err(DecodeError::Refused { id: None, refusal });
        }
        _ => return Err(DecodeError::NotOurProtocol),
    };
    let id = request_id(fields.id).map_err(|refusal| DecodeError::Refused { id: None, refusal })?;
    request(&fields).map(|request| Command { id, request }).map_err(|refusal| DecodeError::Refused { id, refusal })
}

fn request<'a>(fields: &Fields<'a>) -> Result<Request<'a>, Refusal> {
    let kind = string(fields.kind, "type")?.ok_or_else(|| Refusal::bad_request("type is missing"))?;
    match &*kind {
        "join" => Ok(Request::Join { room: room(fields)?, options: join_options(fields)? }),
        "leave" => Ok(Request::Leave { room: room(fields)? }),
        "publish" => Ok(Request::Publish(PublishRequest {
            room: room(fields)?,
            data: fields.data.ok_or_else(|| Refusal::bad_request("data is missing"))?.get(),
            event: event_name(string(fields.event, "event")?)?,
            key: string(fields.key, "key")?,
        })),
        "presence" => Ok(Request::Presence { room: room(fields)? }),
        "history" => Ok(Request::History {
            room: room(fields)?,
            since: cursor(string(fields.since, "since")?)?,
            limit: parsed(fields.limit, "limit is not a whole number")?.unwrap_or(HISTORY_LIMIT).min(HISTORY_LIMIT_MAX),
        }),
        "auth" => match string(fields.token, "token")? {
            Some(_) => Ok(Request::Auth),
            None => Err(Refusal::bad_request("token is missing")),
        },
        "ping" => Ok(Request::Ping),
        _ => Err(Refusal::new(
            ErrorCode::UnknownType,
            "type is not one of join, leave, publish, presence, history, auth, ping",
        )),
    }
}

fn room<'a>(fields: &Fields<'a>) -> Result<Cow<'a, str>, Refusal> {
    string(fields.room, "room")?.ok_or_else(|| Refusal::bad_request("room is missing"))
}

fn join_options(fields: &Fields<'_>) -> Result<JoinOptions, Refusal> {
    Ok(JoinOptions {
        since: cursor(string(fields.since, "since")?)?,
        last: parsed(fields.history, "history is not a whole number")?.unwrap_or(0),
        wants_presence: parsed(fields.presence, "presence is neither true nor false")?.unwrap_or(false),
        skips_own: !parsed(fields.echo, "echo is neither true nor false")?.unwrap_or(true),
        exclude: sessions(fields.exclude)?,
    })
}

// --- fields: `null` means the same as an absent field ---

fn present(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get).filter(|text| *text != "null")
}

fn string<'a>(raw: Option<&'a RawValue>, name: &'static str) -> Result<Option<Cow<'a, str>>, Refusal> {
    let Some(text) = present(raw) else { return Ok(None) };
    // Most strings have no escapes and are borrowed.
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.contains('\\') => Ok(Some(Cow::Borrowed(inner))),
        Some(_) => match serde_json::from_str(text) {
            Ok(owned) => Ok(Some(Cow::Owned(owned))),
            Err(_) => Err(Refusal::bad_request(format!("{name} is not a valid string"))),
        },
        None => Err(Refusal::bad_request(format!("{name} is not a string"))),
    }
}

fn parsed<T: FromStr>(raw: Option<&RawValue>, wrong: &'static str) -> Result<Option<T>, Refusal> {
    present(raw).map(|text| text.parse().map_err(|_| Refusal::bad_request(wrong))).transpose()
}

fn request_id(raw: Option<&RawValue>) -> Result<RequestId, Refusal> {
    let Some(text) = present(raw) else { return Ok(None) };
    match text.parse() {
        Ok(id) if id <= REQUEST_ID_MAX => Ok(Some(id)),
        _ => Err(Refusal::bad_request("id is not a whole number from 0 to 2^53")),
    }
}

pub(crate) fn cursor(text: Option<Cow<'_, str>>) -> Result<Option<Cursor>, Refusal> {
    text.map(|text| {
        text.parse().map_err(|_| {
            Refusal::bad_request(
                "since is not a cursor: a cursor is the text in the field cursor of a message, such as Xk2p9QaB.42",
            )
        })
    })
    .transpose()
}

/// Checks an event name: 1 to 64 bytes.
pub(crate) fn event_name(name: Option<Cow<'_, str>>) -> Result<Option<Cow<'_, str>>, Refusal> {
    match name {
        Some(name) if name.is_empty() || name.len() > EVENT_BYTES_MAX => {
            Err(Refusal::bad_request("event has 1 to 64 bytes"))
        }
        name => Ok(name),
    }
}

fn sessions(raw: Option<&RawValue>) -> Result<SmallVec<[SessionId; 1]>, Refusal> {
    let wrong = || Refusal::bad_request("exclude is a list of up to 8 session ids");
    let Some(text) = present(raw) else { return Ok(SmallVec::new()) };
    let list: Vec<Cow<'_, str>> = serde_json::from_str(text).map_err(|_| wrong())?;
    if list.len() > EXCLUDE_MAX {
        return Err(wrong());
    }
    list.iter().map(|id| id.parse().map_err(|_| wrong())).collect()
}

// --- encoding ---

pub(crate) fn encode(event: &Event<'_>) -> Vec<u8> {
    // Events are built from checked parts; serialising them to memory cannot fail.
    serde_json::to_vec(event).unwrap_or_default()
}

/// Added to the reconnect delay of event streams: `EventSource` has no back-off and repeats a failed request after the
/// same delay.
const RETRY_EXTRA_MS: u64 = 1_000;

/// One event as a frame. `id` is the id of a server-sent event: the client's cursors in the rooms of its URL once it
/// has read this event.
pub(crate) fn frame(shape: FrameShape, event: &Event<'_>, id: Option<&[u8]>) -> Bytes {
    let (text, mut out) = (encode(event), BytesMut::new());
    if shape != FrameShape::Sse {
        put_frame(&mut out, shape, &[&text]);
        return out.freeze();
    }
    if let Event::Reconnect { after_ms, .. } = event {
        let retry_ms = after_ms + RETRY_EXTRA_MS;
        out.put_slice(format!("retry:{retry_ms}\n").as_bytes());
    }
    // The event's name is its type, with which the text begins.
    let name = text.strip_prefix(b"{\"type\":\"").and_then(|rest| rest.split(|byte| *byte == b'"').next());
    name_event(&mut out, name.unwrap_or_default());
    put_frame(&mut out, shape, &[&text]);
    end_event(&mut out, id);
    out.freeze()
}

/// A cursor's text, without an allocation.
pub(crate) fn cursor_text(cursor: Cursor) -> SmallVec<[u8; 32]> {
    let mut text = SmallVec::new();
    text.extend_from_slice(cursor.epoch.as_bytes());
    put_text(&mut text, format_args!(".{}", cursor.offset.0));
    text
}

/// Appends formatted text to memory, which cannot fail.
fn put_text(out: &mut impl Write, text: fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// The part of a message that the publisher's node encodes, before the broker has assigned a cursor: `"data":…`, then
/// `event` and `from` if the message has them. `data` is valid JSON.
pub(crate) fn payload(data: &str, event: Option<&str>, sender: Sender<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 96);
    out.extend_from_slice(b"\"data\":");
    json::put_compact(&mut out, data);
    if let Some(event) = event {
        out.extend_from_slice(b",\"event\":");
        json::put_string(&mut out, event);
    }
    sender.put(&mut out);
    out
}

/// Whether these bytes are what [`payload`] makes. Others would break the frames around them.
pub(crate) fn is_payload(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let is_line = bytes.iter().all(|byte| *byte >= b' ');
    is_line && text.starts_with("\"data\":") && serde_json::from_str::<IgnoredAny>(&format!("{{{text}}}")).is_ok()
}

/// Checks `data` against the message limit, which counts the bytes without white space between tokens ([`payload`]).
pub(crate) fn check_size(data: &str, bytes_max: usize) -> Result<(), Refusal> {
    let fits = data.len() <= bytes_max || {
        let mut compact = Vec::new();
        json::put_compact(&mut compact, data);
        compact.len() <= bytes_max
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::MessageTooLarge, format!("data has more than {bytes_max} bytes")))
}

/// Who published a message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sender<'a> {
    /// A back end: members see no `from`.
    Backend,
    /// A session, and its user unless it is anonymous.
    Session(SessionId, Option<&'a User>),
}

impl Sender<'_> {
    fn put(self, out: &mut Vec<u8>) {
        let Self::Session(session, user) = self else { return };
        out.extend_from_slice(b",\"from\":{\"session\":\"");
        out.extend_from_slice(&session.text());
        out.push(b'"');
        if let Some(user) = user {
            out.extend_from_slice(b",\"user\":");
            json::put_string(out, user.as_str());
        }
        out.push(b'}');
    }
}

/// The JSON text before and after a payload. Before, payload and after together are the message object of
/// docs/protocol.md.
pub(crate) struct MessageText {
    before: SmallVec<[u8; 128]>,
    after: SmallVec<[u8; 32]>,
}

impl MessageText {
    /// The text around the payload of `publication`; the same bytes on every transport.
    pub(crate) fn new(room: &Room, publication: &Publication) -> Self {
        let mut before = SmallVec::new();
        before.extend_from_slice(b"{\"type\":\"message\",\"room\":\"");
        before.extend_from_slice(room.as_str().as_bytes());
        before.extend_from_slice(b"\",");
        if let Some(cursor) = publication.cursor {
            before.extend_from_slice(b"\"cursor\":\"");
            before.extend_from_slice(&cursor_text(cursor));
            before.extend_from_slice(b"\",");
        }
        let mut after = SmallVec::new();
        put_text(&mut after, format_args!(",\"ts\":{}}}", publication.ts_ms));
        Self { before, after }
    }

    /// The parts of the message object, in order.
    pub(crate) fn parts<'a>(&'a self, publication: &'a Publication) -> [&'a [u8]; 3] {
        [&self.before, &publication.payload, &self.after]
    }

    /// Bytes of the message object.
    pub(crate) fn size(&self, publication: &Publication) -> usize {
        self.before.len() + publication.payload.len() + self.after.len()
    }
}

/// A `history` reply: the messages as members got them.
pub(crate) fn history(id: RequestId, room: &Room, page: &Page) -> Vec<u8> {
    let mut out = b"{\"type\":\"history\"".to_vec();
    if let Some(id) = id {
        put_text(&mut out, format_args!(",\"id\":{id}"));
    }
    put_text(&mut out, format_args!(",\"room\":\"{room}\","));
    put_page(&mut out, room, page);
    out.push(b'}');
    out
}

/// The fields of a page of history: `"messages":[…],"cursor":…`, and `gap` if messages are missing.
pub(crate) fn put_page(out: &mut Vec<u8>, room: &Room, page: &Page) {
    out.extend_from_slice(b"\"messages\":[");
    for (i, publication) in page.publications.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let text = MessageText::new(room, publication);
        text.parts(publication).into_iter().for_each(|part| out.extend_from_slice(part));
    }
    put_text(out, format_args!("],\"cursor\":\"{}\"", page.end()));
    if let Some(gap) = page.gap {
        match gap.missed {
            Some(missed) => put_text(out, format_args!(",\"gap\":{{\"missed\":{missed}}}")),
            None => out.extend_from_slice(b",\"gap\":{\"missed\":null}"),
        }
    }
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
