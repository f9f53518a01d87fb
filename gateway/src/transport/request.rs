//! Which transport a request asks for, and for which rooms: read from its path and query, and checked against the node's
//! limits. Called by `http` and by the transports. Pure.

use crate::{
    node::Node,
    policy::{
        class::Class,
        rights::{Act, permit},
    },
    protocol::{
        command::{EXCLUDE_MAX, HISTORY_LIMIT_MAX, JoinOptions},
        error::{ErrorCode, Refusal},
        native,
    },
};
use fanfare_broker::{Cursor, Room, SessionId};
use hyper::Uri;
use smallvec::SmallVec;
use std::{borrow::Cow, collections::HashSet, time::Duration};

/// How a room's messages get to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    WebSocket,
    /// Server-sent events.
    Events,
    /// HTTP streaming.
    Lines,
    /// Long or short polling.
    Poll,
}

/// A request for a transport, and the rooms its URL names.
#[derive(Debug)]
pub(super) struct TransportRequest {
    pub(super) transport: Transport,
    pub(super) rooms: Vec<String>,
    /// The cursors of all rooms as one text, not parsed yet.
    pub(super) since: Option<String>,
    /// The id of the last event that an `EventSource` written in JavaScript has seen.
    pub(super) last_event_id: Option<String>,
    /// How to join all rooms alike: [`TransportRequest::joins`] adds each room's cursor.
    pub(super) options: JoinOptions,
    /// For how long a poll waits.
    pub(super) wait: Option<Duration>,
    /// How many messages a poll takes.
    pub(super) limit: Option<usize>,
    /// The session that a poll belongs to.
    pub(super) session: Option<String>,
    /// The session of a poll leaves its rooms.
    pub(super) leaves: bool,
}

/// A room of the URL and how to join it, or what is wrong with that one.
pub(super) type UrlJoin<'a> = (&'a str, Result<JoinOptions, Refusal>);

impl TransportRequest {
    /// `None` if the path belongs to no transport.
    pub(super) fn of(uri: &Uri) -> Option<Result<Self, Refusal>> {
        let (transport, list) = match uri.path() {
            "/ws" => (Transport::WebSocket, ""),
            path => {
                let (list, transport) = path.strip_prefix("/v1/rooms/")?.split_once('/')?;
                let transport = match transport {
                    "ws" => Transport::WebSocket,
                    "sse" => Transport::Events,
                    "stream" => Transport::Lines,
                    "poll" => Transport::Poll,
                    _ => return None,
                };
                (transport, list)
            }
        };
        let rooms = match decode(list) {
            // Decoded first and split then, since proxies encode and decode commas as they like. So a name with a comma
            // cannot stand in the path, even encoded; it goes into `?room=`.
            Ok(list) if list.is_empty() => Vec::new(),
            Ok(list) => list.split(',').map(str::to_owned).collect(),
            Err(refusal) => return Some(Err(refusal)),
        };
        Some(Self::new(transport, rooms).with_query(uri.query().unwrap_or_default()))
    }

    pub(super) fn new(transport: Transport, rooms: Vec<String>) -> Self {
        let options = JoinOptions::default();
        Self {
            transport,
            rooms,
            since: None,
            last_event_id: None,
            options,
            wait: None,
            limit: None,
            session: None,
            leaves: false,
        }
    }

    fn with_query(mut self, query: &str) -> Result<Self, Refusal> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?.into_owned();
            match name {
                "room" => self.rooms.push(value),
                "since" => self.since = Some(value),
                "presence" => self.options.wants_presence = flag("presence", &value)?,
                "echo" => self.options.skips_own = !flag("echo", &value)?,
                "exclude" => self.options.exclude = sessions(&value)?,
                "last" => self.options.last = HISTORY_LIMIT_MAX.min(number("last", &value)?),
                "wait" => self.wait = Some(Duration::from_secs(number("wait", &value)? as u64)),
                "limit" => self.limit = Some(number("limit", &value)?),
                "session" => self.session = Some(value),
                "leave" => self.leaves = flag("leave", &value)?,
                // Where an `EventSource` written in JavaScript cannot set the header without a preflight, it appends
                // this: event-source-polyfill, Mercure's clients, and eventsource-polyfill, in this order.
                "lastEventId" | "lastEventID" | "evs_last_event_id" => self.last_event_id = Some(value),
                _ => {} // `n` is for nginx; others may be for other proxies
            }
        }
        Ok(self)
    }

    /// How to join each room, in order. An error: `since` has the wrong number of parts, which concerns all rooms.
    pub(super) fn joins(&self) -> Result<Vec<UrlJoin<'_>>, Refusal> {
        let since = split_since(self.since.as_deref(), self.rooms.len())?;
        let options = |since: Result<_, Refusal>| since.map(|since| JoinOptions { since, ..self.options.clone() });
        Ok(self.rooms.iter().map(String::as_str).zip(since.into_iter().map(options)).collect())
    }

    /// The rooms of the URL with their classes. All of them must be valid: before a stream or a poll has begun, there is
    /// nothing in which one of them could be refused alone.
    pub(super) fn checked_rooms(&self, node: &Node, act: Act) -> Result<Vec<(Room, Class)>, Refusal> {
        if self.rooms.is_empty() {
            return Err(Refusal::bad_request("the URL names no room"));
        }
        if self.rooms.len() > node.limits.rooms_per_session {
            let most = node.limits.rooms_per_session;
            return Err(Refusal::new(ErrorCode::RoomLimit, format!("at most {most} rooms at a time")));
        }
        let (mut seen, mut rooms) = (HashSet::new(), Vec::with_capacity(self.rooms.len()));
        for name in &self.rooms {
            if !seen.insert(name) {
                return Err(Refusal::bad_request(format!("the URL names {name} twice")));
            }
            let room = Room::parse(name)?;
            permit(None, act, &room)?;
            let class = node.classes.of(room.as_str());
            rooms.push((room, class));
        }
        Ok(rooms)
    }
}

/// The `since` of a URL: one cursor for each of its rooms, in their order. A malformed cursor refuses its own room only.
/// An error: the number of cursors is wrong.
pub(super) fn split_since(since: Option<&str>, rooms: usize) -> Result<Vec<Result<Option<Cursor>, Refusal>>, Refusal> {
    let Some(since) = since else { return Ok((0..rooms).map(|_| Ok(None)).collect()) };
    let parts: Vec<&str> = since.split('~').collect();
    if parts.len() != rooms {
        return Err(Refusal::bad_request("since has one part per room, joined by ~"));
    }
    let part = |text: &str| match text {
        "" | "-" => Ok(None),
        text => native::cursor(Some(Cow::Borrowed(text))),
    };
    Ok(parts.into_iter().map(part).collect())
}

fn sessions(value: &str) -> Result<SmallVec<[SessionId; 1]>, Refusal> {
    let wrong = || Refusal::bad_request(format!("exclude is a list of up to {EXCLUDE_MAX} session ids"));
    let ids = value.split(',').map(|id| id.parse().map_err(|_| wrong()));
    let ids: SmallVec<_> = ids.collect::<Result<_, _>>()?;
    if ids.len() > EXCLUDE_MAX { Err(wrong()) } else { Ok(ids) }
}

fn number(name: &str, value: &str) -> Result<usize, Refusal> {
    value.parse().map_err(|_| Refusal::bad_request(format!("{name} is not a whole number")))
}

fn flag(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Refusal::bad_request(format!("{name} is neither 0 nor 1"))),
    }
}

/// Percent-decoding (RFC 3986 section 2.1). `+` stays a plus.
fn decode(text: &str) -> Result<Cow<'_, str>, Refusal> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let wrong = || Refusal::new(ErrorCode::BadRequest, "the URL is not percent-encoded UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str) -> Option<Result<TransportRequest, Refusal>> {
        TransportRequest::of(&uri.parse().unwrap())
    }

    #[test]
    fn rooms_are_named_in_the_path_or_in_the_query() {
        assert_eq!(asked("/ws").unwrap().unwrap().rooms, Vec::<String>::new());
        assert_eq!(asked("/ws?room=a%2Cb&n=x&room=c").unwrap().unwrap().rooms, ["a,b", "c"]);
        assert_eq!(asked("/v1/rooms/a,chat%3A1/ws").unwrap().unwrap().rooms, ["a", "chat:1"]);
        assert_eq!(asked("/v1/rooms//ws?room=a").unwrap().unwrap().rooms, ["a"]);
        let transports =
            ["ws", "sse", "stream", "poll"].map(|end| asked(&format!("/v1/rooms/a/{end}")).unwrap().unwrap().transport);
        assert_eq!(transports, [Transport::WebSocket, Transport::Events, Transport::Lines, Transport::Poll]);
        for other in ["/", "/v1/rooms/a", "/v1/rooms/a/history", "/v1/rooms/a/b/ws", "/wss"] {
            assert!(asked(other).is_none(), "{other}");
        }
        let own = asked("/ws?room=a&exclude=AAAAAAAAAAAAAAAA,BBBBBBBBBBBBBBBB").unwrap().unwrap();
        assert_eq!(own.options.exclude.len(), 2);
        assert!(asked("/ws?exclude=x").unwrap().is_err());
        let poll = asked("/v1/rooms/a/poll?wait=3&limit=7&session=s").unwrap().unwrap();
        assert_eq!(
            (poll.wait, poll.limit, poll.session.as_deref()),
            (Some(Duration::from_secs(3)), Some(7), Some("s"))
        );
        for bad in [
            "/v1/rooms/a/poll?wait=-1",
            "/v1/rooms/a/poll?limit=x",
            "/ws?room=%",
            "/ws?room=%zz",
            "/ws?room=%ff",
            "/ws?echo=maybe",
            "/ws?last=x",
        ] {
            assert!(asked(bad).unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn since_has_one_part_per_room() {
        let asked =
            asked("/ws?room=a&room=b&room=c&room=d&since=~Xk2p9QaB.1~-~x&presence=1&echo=0&last=5").unwrap().unwrap();
        let joins = asked.joins().unwrap();
        assert_eq!(joins.len(), 4);
        assert_eq!(joins[0].1.as_ref().unwrap().since, None);
        let second = joins[1].1.as_ref().unwrap();
        assert_eq!(second.since.unwrap().to_string(), "Xk2p9QaB.1");
        assert_eq!((second.wants_presence, second.skips_own, second.last), (true, true, 5));
        assert!(joins[3].1.is_err());
    }

    #[test]
    fn since_with_too_few_parts_is_refused_as_a_whole() {
        assert!(asked("/ws?room=a&room=b&since=x").unwrap().unwrap().joins().is_err());
    }
}
