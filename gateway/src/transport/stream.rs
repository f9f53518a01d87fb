//! Server-sent events and HTTP streaming: a response that does not end. Here are its beginning, its refusal, and the
//! task that notices when the client is gone. Messages go out through the session's outbox, as on every transport.

use super::{
    exchange::Exchange,
    request::{Transport, TransportRequest, split_since},
};
use crate::{
    http::{problem, response_head},
    node::Node,
    policy::{class::Class, peer::ConnectionPermit, rights::Act},
    protocol::{FrameShape, command::JoinOptions, error::Refusal},
    random::random_below,
    shard::{Opening, SessionRef, Shard, UrlRoom},
};
use axum::body::Body;
use fanfare_broker::{Cursor, Epoch, Offset, Room};
use hyper::{
    Response,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use std::{future::poll_fn, rc::Rc};
use tokio::net::TcpStream;

/// How long a browser waits before it opens a broken stream again, in milliseconds: the least time, and the most that
/// is added at random, so that the clients of a lost node do not all return in one moment.
const RETRY_MS: (u64, u64) = (1_000, 2_000);
/// The same when the stream cannot be served now.
const LATER_MS: (u64, u64) = (2_000, 13_000);

/// A proxy sends this header to get refusals as a status.
const REFUSE_BY_STATUS: HeaderName = HeaderName::from_static("x-fanfare-refuse");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A stream that may be opened.
pub(super) struct ReadyStream {
    shape: FrameShape,
    rooms: Vec<(Room, Class, JoinOptions)>,
    permit: Option<ConnectionPermit>,
    response: Response<()>,
}

/// Checks whether a stream can be opened for this request. [`refuse`] makes a response of the refusal.
pub(super) fn prepare(
    node: &Node,
    exchange: &Exchange,
    asked: &TransportRequest,
    headers: &HeaderMap,
) -> Result<ReadyStream, Refusal> {
    if node.drain.is_draining() {
        return Err(Refusal::draining());
    }
    let rooms = asked.checked_rooms(node, Act::Join)?;
    if let Some((room, _)) = rooms.iter().find(|(_, class)| asked.options.wants_presence && !class.presence) {
        let refusal = Refusal::presence_off();
        return Err(Refusal { message: format!("{room}: {}", refusal.message).into(), ..refusal });
    }
    // A client that reconnects repeats the URL of its first request, so the id of its last event is newer than `since`.
    let by_header = headers.get(LAST_EVENT_ID).map(HeaderValue::as_bytes);
    let by_query = asked.last_event_id.as_deref().map(str::as_bytes);
    let since = match [by_header, by_query].into_iter().flatten().find(|id| !id.is_empty()) {
        Some(id) => by_event_id(id, rooms.len()),
        None => asked.joins()?.into_iter().map(|(_, join)| join.map(|join| join.since)).collect::<Result<_, _>>()?,
    };
    let shape = shape(asked);
    // While the backplane is away, a stream would be silent. An event stream is refused then, because EventSource asks
    // again by itself. Other clients may not, so their stream is opened and begins when the backplane is back.
    if shape == FrameShape::Sse {
        rooms.iter().try_for_each(|(room, _)| node.broker.availability(room))?;
    }
    let permit = node.permit_connection(exchange.client)?;
    let join = |((room, class), since)| (room, class, JoinOptions { since, ..asked.options.clone() });
    let rooms = rooms.into_iter().zip(since).map(join).collect();
    Ok(ReadyStream { shape, rooms, permit, response: exchange.finish.response(response(shape)) })
}

fn shape(asked: &TransportRequest) -> FrameShape {
    if asked.transport == Transport::Events { FrameShape::Sse } else { FrameShape::Line }
}

/// The cursors of a `Last-Event-ID`. The browser repeats it by itself and the page cannot change it, so a malformed one
/// is not refused: it becomes a cursor of no epoch, and the client gets a gap.
fn by_event_id(id: &[u8], rooms: usize) -> Vec<Option<Cursor>> {
    let unknown = Some(Cursor::new(Epoch::FOREIGN, Offset(0)));
    match split_since(Some(std::str::from_utf8(id).unwrap_or_default()), rooms) {
        Ok(parts) => parts.into_iter().map(|part| part.unwrap_or(unknown)).collect(),
        Err(_) => vec![unknown; rooms],
    }
}

fn response(shape: FrameShape) -> Response<()> {
    let kind = if shape == FrameShape::Line { "application/x-ndjson" } else { "text/event-stream" };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // The body ends with the connection: all members get the same bytes, without the lengths of chunked encoding.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The response to a request whose stream is refused. Any status but 200 ends a browser's `EventSource` for good
/// (WHATWG HTML, section 9.2.3), so a refusal that a retry can help is a stream with the time of the retry and nothing
/// else. A proxy that can make such a stream itself asks for the status, so that it can try another node first.
pub(super) fn refuse(asked: &TransportRequest, headers: &HeaderMap, refusal: &Refusal) -> Response<Body> {
    let shape = shape(asked);
    if shape != FrameShape::Sse || !refusal.code.retryable() || headers.contains_key(REFUSE_BY_STATUS) {
        return problem(refusal);
    }
    let (parts, ()) = response(shape).into_parts();
    Response::from_parts(parts, Body::from(format!("retry:{}\n\n", between(LATER_MS))))
}

fn between((least, spread): (u64, u64)) -> u64 {
    least + random_below(spread)
}

impl ReadyStream {
    /// Opens a session on the socket. The response's head is the first thing in its outbox.
    pub(super) fn open(self, shard: Rc<Shard>, socket: TcpStream) {
        let socket = Rc::new(socket);
        let mut head = response_head(&self.response);
        if self.shape == FrameShape::Sse {
            head.extend_from_slice(format!("retry:{}\n\n", between(RETRY_MS)).as_bytes());
        }
        let room = |(name, class, join): &(Room, Class, JoinOptions)| UrlRoom {
            name: name.clone(),
            is_numbered: class.history.is_some(),
            reached: join.since,
        };
        let opening = Opening { shape: self.shape, head: head.freeze(), rooms: self.rooms.iter().map(room).collect() };
        let who = shard.open(Rc::clone(&socket), self.permit, opening);
        for (room, _, options) in self.rooms {
            shard.join_by_url(who, room.as_str(), Ok(options));
        }
        tokio::task::spawn_local(watch(shard, who, socket));
    }
}

/// Waits until the socket has ended, then removes the session. Bytes that the client sends meanwhile, which HTTP does
/// not allow, are dropped.
async fn watch(shard: Rc<Shard>, who: SessionRef, socket: Rc<TcpStream>) {
    while let Ok(()) = poll_fn(|cx| socket.poll_read_ready(cx)).await {
        match socket.try_read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => tokio::task::yield_now().await,
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    shard.remove(who);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_event_id_becomes_a_cursor_of_no_epoch() {
        let cursors = |id: &str, rooms| by_event_id(id.as_bytes(), rooms);
        let known: Cursor = "Xk2p9QaB.4".parse().unwrap();
        assert_eq!(cursors("Xk2p9QaB.4~~-", 3), [Some(known), None, None]);
        for (id, rooms) in [("x", 1), ("Xk2p9QaB.4", 2), ("\u{fffd}", 1)] {
            assert!(cursors(id, rooms).iter().all(|cursor| cursor.is_some_and(|c| c.epoch == Epoch::FOREIGN)), "{id}");
        }
    }

    #[test]
    fn an_event_stream_is_refused_for_good_only_where_a_retry_cannot_help() {
        let asked = |transport| TransportRequest::new(transport, vec![]);
        let mut headers = HeaderMap::new();
        let later = refuse(&asked(Transport::Events), &headers, &Refusal::draining());
        assert_eq!(
            (later.status().as_u16(), later.headers()["content-type"].as_bytes()),
            (200, &b"text/event-stream"[..])
        );
        assert_eq!(refuse(&asked(Transport::Lines), &headers, &Refusal::draining()).status(), 503);
        assert_eq!(refuse(&asked(Transport::Events), &headers, &Refusal::bad_request("no")).status(), 400);
        headers.insert(REFUSE_BY_STATUS, HeaderValue::from_static("status"));
        assert_eq!(refuse(&asked(Transport::Events), &headers, &Refusal::draining()).status(), 503);
    }

    #[test]
    fn an_idle_stream_costs_a_small_task() {
        fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let size = size_of_future(watch);
        assert!(size <= 160, "{size}");
    }
}
