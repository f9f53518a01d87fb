//! The answer to a poll: messages as members get them, byte for byte, the cursors after them, gaps, and when to poll again.
//! Filled by `look`, sent by `wait`. Pure.

use crate::{
    http::json_bytes,
    protocol::{address::PollSession, native},
    session::Hold,
};
use axum::{body::Body, response::IntoResponse as _};
use fanfare_broker::{Cursor, Gap, Page, Room};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};
use std::io::Write as _;

/// Bytes of an answer. The first message is taken whatever its size, or no poll would ever get it.
pub(super) const BYTES_MAX: usize = 256 << 10;
/// Bytes of it that are not messages: the session and punctuation, and for each room its cursor (at most 49), its gap and
/// punctuation.
const AROUND_BYTES: usize = 256;
const ROOM_BYTES: usize = 128;

/// What there is for a poll.
pub(super) struct PollResult {
    session: PollSession,
    names: Vec<Room>,
    /// The cursors are answered with the names of their rooms.
    by_name: bool,
    /// The response gets an `ETag`.
    pub(super) is_tagged: bool,
    /// Bytes that messages may have.
    bytes_max: usize,
    /// Message objects, separated by commas.
    messages: Vec<u8>,
    /// Counts them in the shard's budget.
    hold: Hold,
    pub(super) count: usize,
    /// The client's cursors afterwards, in the order of the rooms.
    pub(super) ends: Vec<Cursor>,
    gaps: Vec<(Room, Gap)>,
    more: bool,
    /// It holds a cursor for a room that the client had none of.
    pub(super) is_fresh: bool,
    pub(super) next_ms: u64,
}

impl PollResult {
    /// Nothing yet, and space for messages up to `bytes_max` with all that is around them.
    pub(super) fn new(session: PollSession, names: Vec<Room>, by_name: bool, bytes_max: usize, hold: Hold) -> Self {
        // A name can occur twice: with its cursor and with its gap.
        let around: usize = names.iter().map(|room| ROOM_BYTES + 2 * room.as_str().len()).sum();
        Self {
            session,
            names,
            by_name,
            is_tagged: false,
            bytes_max: bytes_max.saturating_sub(AROUND_BYTES + around),
            messages: Vec::new(),
            hold,
            count: 0,
            ends: Vec::new(),
            gaps: Vec::new(),
            more: false,
            is_fresh: false,
            next_ms: 0,
        }
    }

    /// Whether there is something that a waiting client must get now.
    pub(super) fn is_news(&self) -> bool {
        self.count > 0 || self.is_fresh || !self.gaps.is_empty()
    }

    /// Bytes of messages that still fit.
    pub(super) fn bytes_left(&self) -> usize {
        self.bytes_max.saturating_sub(self.messages.len())
    }

    /// Whether no message fits any more. The first one always does.
    pub(super) fn is_full(&self) -> bool {
        self.count > 0 && self.bytes_left() == 0
    }

    /// Leaves a room's messages to the next poll.
    pub(super) fn leave_for_later(&mut self, since: Option<Cursor>) {
        self.ends.extend(since);
        self.more = true;
    }

    /// Takes as much of a room's page as fits.
    pub(super) fn take(&mut self, room: &Room, page: &Page, limit: usize) {
        if let Some(gap) = page.gap {
            self.gaps.push((room.clone(), gap));
        }
        let mut end = page.from;
        for publication in page.publications.iter().take(limit) {
            let text = native::MessageText::new(room, publication);
            let parts = text.parts(publication);
            let bytes = self.messages.len() + parts.iter().map(|part| part.len()).sum::<usize>();
            if self.count > 0 && bytes > self.bytes_max {
                self.bytes_max = self.messages.len(); // smaller messages of the rooms after it do not overtake it
                break;
            }
            if self.count > 0 {
                self.messages.push(b',');
            }
            parts.into_iter().for_each(|part| self.messages.extend_from_slice(part));
            self.count += 1;
            end = publication.cursor.unwrap_or(end);
        }
        self.hold.set(self.messages.capacity());
        self.more |= end != page.head;
        self.ends.push(end);
    }

    fn cursor(&self) -> String {
        self.ends.iter().map(ToString::to_string).collect::<Vec<_>>().join("~")
    }

    /// Whether an `If-None-Match` names this state (RFC 9110 section 13.1.2: a list, weak comparison). `*` would name every
    /// state and so withhold all messages; it is taken to name no state.
    pub(super) fn is_named_by(&self, tags: &[u8]) -> bool {
        let own = format!("\"{}\"", self.cursor());
        let tags = std::str::from_utf8(tags).unwrap_or_default();
        self.gaps.is_empty() && tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == own)
    }

    pub(super) fn into_response(mut self) -> Response<Body> {
        let mut body = Vec::with_capacity(self.messages.len() + 256);
        // Writing to memory cannot fail, here and below.
        let _ = write!(body, "{{\"session\":\"{}\",", self.session);
        self.put_cursors(&mut body);
        body.extend_from_slice(b",\"messages\":[");
        body.extend_from_slice(&self.messages);
        let _ = write!(body, "],\"more\":{}", self.more);
        if !self.gaps.is_empty() {
            let gap = |(room, gap): &(Room, Gap)| {
                let missed = gap.missed.map_or_else(|| "null".to_owned(), |missed| missed.to_string());
                format!("\"{room}\":{{\"missed\":{missed}}}")
            };
            let gaps: Vec<String> = self.gaps.iter().map(gap).collect();
            let _ = write!(body, ",\"gap\":{{{}}}", gaps.join(","));
        }
        let next_ms = if self.more { 0 } else { self.next_ms };
        let _ = writeln!(body, ",\"next_ms\":{next_ms}}}");
        self.hold.set(body.capacity());
        let mut response = json_bytes(StatusCode::OK, std::mem::take(&mut self.hold).with(body));
        if self.is_tagged {
            self.tag(&mut response);
        }
        response
    }

    fn put_cursors(&self, body: &mut Vec<u8>) {
        if !self.by_name {
            let _ = write!(body, "\"cursor\":\"{}\"", self.cursor());
            return;
        }
        let named = self.names.iter().zip(&self.ends).map(|(room, end)| format!("\"{room}\":\"{end}\""));
        let _ = write!(body, "\"cursors\":{{{}}}", named.collect::<Vec<_>>().join(","));
    }

    fn tag<T>(&self, response: &mut Response<T>) {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        headers.insert(header::VARY, HeaderValue::from_static("Authorization"));
        if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", self.cursor())) {
            headers.insert(header::ETAG, tag);
        }
    }
}

/// 304: the client has this state already.
pub(super) fn not_modified(found: &PollResult) -> Response<Body> {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    found.tag(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::{MessageId, NodeId, Offset, Publication};

    fn cursor(offset: u64) -> Cursor {
        let first: Cursor = "Xk2p9QaB.0".parse().unwrap();
        Cursor::new(first.epoch, Offset(offset))
    }

    fn page(offsets: std::ops::RangeInclusive<u64>, bytes: usize) -> Page {
        let publication = |offset| Publication {
            cursor: Some(cursor(offset)),
            id: MessageId { node: NodeId(1), number: offset },
            author: None,
            ts_ms: 1,
            payload: format!("\"data\":\"{}\"", "x".repeat(bytes)).into(),
        };
        let (from, head) = (cursor(offsets.start() - 1), cursor(*offsets.end()));
        Page { publications: offsets.map(publication).collect(), from, head, gap: None }
    }

    fn empty(room: &Room) -> PollResult {
        PollResult::new(PollSession::random(), vec![room.clone()], false, BYTES_MAX, Hold::default())
    }

    #[test]
    fn an_answer_ends_at_its_limits_and_says_that_there_is_more() {
        let room = Room::parse("a").unwrap();
        let mut found = empty(&room);
        found.take(&room, &page(1..=10, 1), 4);
        assert_eq!((found.count, found.ends[0], found.more), (4, cursor(4), true));
        let mut found = empty(&room);
        found.take(&room, &page(1..=10, 100_000), 10);
        assert_eq!((found.count, found.ends[0], found.more), (2, cursor(2), true));
        let mut found = empty(&room);
        found.take(&room, &page(1..=2, 300_000), 10);
        assert_eq!((found.count, found.ends[0], found.more), (1, cursor(1), true));
        let mut found = empty(&room);
        found.take(&room, &page(1..=3, 1), 10);
        assert_eq!((found.count, found.ends[0], found.more), (3, cursor(3), false));
        assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&[b"[", &found.messages[..], b"]"].concat()).is_ok());
    }

    #[test]
    fn a_state_is_unmodified_if_one_of_the_tags_names_it() {
        let mut found = empty(&Room::parse("a").unwrap());
        found.ends = vec![cursor(4), cursor(7)];
        for tags in ["\"Xk2p9QaB.4~Xk2p9QaB.7\"", "\"x\", W/\"Xk2p9QaB.4~Xk2p9QaB.7\""] {
            assert!(found.is_named_by(tags.as_bytes()), "{tags}");
        }
        for tags in ["*", "", "Xk2p9QaB.4~Xk2p9QaB.7", "\"Xk2p9QaB.4\"", "\"Xk2p9QaB.4~Xk2p9QaB.8\""] {
            assert!(!found.is_named_by(tags.as_bytes()), "{tags}");
        }
    }
}
