//! Which transport a request asks for, and for which rooms: read from method, path and query. Pure.

use crate::{
    command::{EchoWish, HISTORY_LIMIT_MAX, JoinOptions, PresenceWish},
    error::{ErrorCode, Refusal},
    shard::split_since,
};
use hyper::Uri;
use std::borrow::Cow;

/// A request for a WebSocket, and the rooms its URL names.
#[derive(Debug, Default)]
pub(super) struct Door {
    pub(super) rooms: Vec<String>,
    since: Option<String>,
    presence: bool,
    echo: bool,
    last: usize,
}

/// A room of the URL and how to join it, or what is wrong with that one.
pub(super) type UrlJoin<'a> = (&'a str, Result<JoinOptions, Refusal>);

impl Door {
    /// `None` if the path is no transport's.
    pub(super) fn of(uri: &Uri) -> Option<Result<Self, Refusal>> {
        let rooms = match uri.path() {
            "/ws" => Vec::new(),
            path => {
                let list = path.strip_prefix("/v1/rooms/")?.strip_suffix("/ws").filter(|list| !list.contains('/'))?;
                match decode(list) {
                    // The comma separates before names are decoded, so that a name can hold an encoded one? It cannot:
                    // proxies decode and encode commas as they like. Such names go into `?room=`.
                    Ok(list) => list.split(',').map(str::to_owned).collect(),
                    Err(refusal) => return Some(Err(refusal)),
                }
            }
        };
        Some(Self { rooms, echo: true, ..Self::default() }.with_query(uri.query().unwrap_or_default()))
    }

    fn with_query(mut self, query: &str) -> Result<Self, Refusal> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?.into_owned();
            match name {
                "room" => self.rooms.push(value),
                "since" => self.since = Some(value),
                "presence" => self.presence = flag("presence", &value)?,
                "echo" => self.echo = flag("echo", &value)?,
                "last" => {
                    let last = value.parse().map_err(|_| Refusal::bad_request("last is not a whole number"))?;
                    self.last = HISTORY_LIMIT_MAX.min(last);
                }
                _ => {} // `n` is nginx's, others may be anybody's
            }
        }
        Ok(self)
    }

    /// How each room is to be joined, in order.
    ///
    /// # Errors
    /// A refusal of the whole list: `since` has the wrong number of parts.
    pub(super) fn joins(&self) -> Result<Vec<UrlJoin<'_>>, Refusal> {
        let since = split_since(self.since.as_deref(), self.rooms.len())?;
        let options = |since: Result<_, Refusal>| {
            since.map(|since| JoinOptions {
                since,
                last: self.last,
                presence: if self.presence { PresenceWish::Members } else { PresenceWish::No },
                echo: if self.echo { EchoWish::Yes } else { EchoWish::No },
                ..JoinOptions::default()
            })
        };
        Ok(self.rooms.iter().map(String::as_str).zip(since.into_iter().map(options)).collect())
    }
}

fn flag(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Refusal::bad_request(format!("{name} is neither 0 nor 1"))),
    }
}

/// Percent-decoding (RFC 3986 section 2.1); `+` stays what it is.
pub(crate) fn decode(text: &str) -> Result<Cow<'_, str>, Refusal> {
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

    fn door(uri: &str) -> Option<Result<Door, Refusal>> {
        Door::of(&uri.parse().unwrap())
    }

    #[test]
    fn rooms_stand_in_the_path_or_in_the_query() {
        assert_eq!(door("/ws").unwrap().unwrap().rooms, Vec::<String>::new());
        assert_eq!(door("/ws?room=a%2Cb&n=x&room=c").unwrap().unwrap().rooms, ["a,b", "c"]);
        assert_eq!(door("/v1/rooms/a,chat%3A1/ws").unwrap().unwrap().rooms, ["a", "chat:1"]);
        for other in ["/", "/v1/rooms/a", "/v1/rooms/a/sse", "/v1/rooms/a/b/ws", "/wss"] {
            assert!(door(other).is_none(), "{other}");
        }
        for bad in ["/ws?room=%", "/ws?room=%zz", "/ws?room=%ff", "/ws?echo=maybe", "/ws?last=x"] {
            assert!(door(bad).unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn since_has_one_part_per_room() {
        let door =
            door("/ws?room=a&room=b&room=c&room=d&since=~Xk2p9QaB.1~-~x&presence=1&echo=0&last=5").unwrap().unwrap();
        let joins = door.joins().unwrap();
        assert_eq!(joins.len(), 4);
        assert_eq!(joins[0].1.as_ref().unwrap().since, None);
        let second = joins[1].1.as_ref().unwrap();
        assert_eq!(second.since.unwrap().to_string(), "Xk2p9QaB.1");
        assert_eq!((second.presence, second.echo, second.last), (PresenceWish::Members, EchoWish::No, 5));
        assert!(joins[3].1.is_err());
    }

    #[test]
    fn since_with_too_few_parts_is_refused_as_a_whole() {
        assert!(door("/ws?room=a&room=b&since=x").unwrap().unwrap().joins().is_err());
    }
}
