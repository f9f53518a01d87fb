//! Server-sent events and HTTP streaming: one long answer each. Here is what opens it, refused or not, and the reader that
//! notices the client's end; what goes out is the session's, as on every transport.

use super::request::{Transport, TransportRequest};
use crate::{
    http::{head::head, problem::problem},
    node::Node,
    policy::{
        class::Class,
        peer::ConnectionPermit,
        rights::{Act, permit},
    },
    protocol::{
        FrameShape,
        command::JoinOptions,
        error::{ErrorCode, Refusal},
    },
    random::random_below,
    shard::{Opening, SessionRef, Shard},
};
use axum::body::Body;
use fanfare_broker::{BrokerError, Cursor, Epoch, Offset, Room};
use hyper::{
    Response,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use std::{collections::HashSet, future::poll_fn, net::IpAddr, rc::Rc};
use tokio::net::TcpStream;

/// How long a browser waits before it comes back to a stream that broke; by chance, so that a lost node's clients do not
/// come back in one moment. Milliseconds: the least, and how much more.
const RETRY_MS: (u64, u64) = (1_000, 2_000);
/// The same when it cannot be served now.
const LATER_MS: (u64, u64) = (2_000, 13_000);

/// What a proxy sends that wants to see a refusal as a status.
const REFUSE_BY_STATUS: HeaderName = HeaderName::from_static("x-fanfare-refuse");

/// A stream that may be opened.
pub(super) struct Ready {
    shape: FrameShape,
    rooms: Vec<(Room, Class, JoinOptions)>,
    seat: Option<ConnectionPermit>,
    /// The response, without the headers that all responses get.
    pub(super) response: Response<()>,
}

/// Whether a stream can be opened for this request.
///
/// # Errors
/// Why not; [`refuse`] makes an answer of it.
pub(super) fn prepare(
    node: &Node,
    client: IpAddr,
    asked: &TransportRequest,
    last_event_id: Option<&HeaderValue>,
) -> Result<Ready, Refusal> {
    if node.drain.is_draining() {
        return Err(Refusal::draining());
    }
    let rooms = asked.checked_rooms(node, Act::Join)?;
    if let Some((room, _)) = rooms.iter().find(|(_, class)| asked.presence && !class.presence) {
        let refusal = Refusal::presence_off();
        return Err(Refusal { message: format!("{room}: {}", refusal.message).into(), ..refusal });
    }
    let since = match last_event_id.filter(|id| !id.is_empty()) {
        Some(id) => by_event_id(id.as_bytes(), rooms.len()),
        None => asked.joins()?.into_iter().map(|(_, join)| join.map(|join| join.since)).collect::<Result<_, _>>()?,
    };
    let shape = shape(asked);
    // Whoever has no stream yet is better off asking again than waiting for a backplane; a line stream's client waits.
    if shape == FrameShape::Event && !rooms.iter().all(|(room, _)| node.broker.is_up(room)) {
        return Err(BrokerError::Unavailable.into());
    }
    let seat = node.seat(client)?;
    let join = |((room, class), since)| (room, class, JoinOptions { since, ..asked.options() });
    Ok(Ready { shape, rooms: rooms.into_iter().zip(since).map(join).collect(), seat, response: response(shape) })
}

fn shape(asked: &TransportRequest) -> FrameShape {
    if asked.carrier == Transport::Events { FrameShape::Event } else { FrameShape::Line }
}

impl TransportRequest {
    /// The rooms of the URL, all of which must be right: there is no frame yet that could refuse one of them.
    ///
    /// # Errors
    /// What is wrong with the first one that is.
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
                return Err(Refusal::bad_request(format!("{name} stands twice")));
            }
            let room = Room::parse(name)?;
            permit(None, act, &room)?;
            let class = node.classes.of(room.as_str());
            rooms.push((room, class));
        }
        Ok(rooms)
    }
}

/// What a browser sends by itself cannot be mended by anybody: what does not make sense is a place that is gone.
fn by_event_id(id: &[u8], rooms: usize) -> Vec<Option<Cursor>> {
    let nowhere = Some(Cursor::new(Epoch::FOREIGN, Offset(0)));
    let parts: Vec<&str> = std::str::from_utf8(id).unwrap_or_default().split('~').collect();
    if parts.len() != rooms {
        return vec![nowhere; rooms];
    }
    let part = |part: &str| match part {
        "" | "-" => None,
        part => part.parse().ok().or(nowhere),
    };
    parts.into_iter().map(part).collect()
}

fn response(shape: FrameShape) -> Response<()> {
    let kind = if shape == FrameShape::Line { "application/x-ndjson" } else { "text/event-stream" };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // The body ends with the connection: frames are shared, and need no lengths around them.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Any status but 200 ends a browser's `EventSource` for good (WHATWG HTML, section 9.2.3): where a retry could help, the
/// answer is a stream that says when. A proxy that makes such a stream itself asks for the status, so that it can try
/// another node first.
pub(super) fn refuse(asked: &TransportRequest, headers: &HeaderMap, refusal: &Refusal) -> Response<Body> {
    let shape = shape(asked);
    if shape != FrameShape::Event || !refusal.code.retryable() || headers.contains_key(REFUSE_BY_STATUS) {
        return problem(refusal);
    }
    let (parts, ()) = response(shape).into_parts();
    Response::from_parts(parts, Body::from(format!("retry:{}\n\n", between(LATER_MS))))
}

fn between((least, spread): (u64, u64)) -> u64 {
    least + random_below(spread)
}

impl Ready {
    /// Makes a session of a socket whose request has been read.
    pub(super) fn open(self, shard: Rc<Shard>, socket: TcpStream) {
        let socket = Rc::new(socket);
        let mut head = head(&self.response);
        if self.shape == FrameShape::Event {
            head.extend_from_slice(format!("retry:{}\n\n", between(RETRY_MS)).as_bytes());
        }
        let urls = self.rooms.iter().map(|(room, class, join)| (room.clone(), class.history.is_some(), join.since));
        let opening = Opening::stream(self.shape, head.freeze(), urls);
        let who = shard.open(Rc::clone(&socket), self.seat, opening);
        for (room, _, options) in self.rooms {
            shard.join_by_url(who, room.as_str(), Ok(options));
        }
        tokio::task::spawn_local(watch(shard, who, socket));
    }
}

/// Waits for the client's end. What it sends meanwhile (nothing, if it keeps to HTTP) is thrown away.
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
    fn an_event_id_that_makes_no_sense_is_a_place_that_is_gone() {
        let places = |id: &str, rooms| by_event_id(id.as_bytes(), rooms);
        let known: Cursor = "Xk2p9QaB.4".parse().unwrap();
        assert_eq!(places("Xk2p9QaB.4~~-", 3), [Some(known), None, None]);
        for (id, rooms) in [("x", 1), ("Xk2p9QaB.4", 2), ("\u{fffd}", 1)] {
            assert!(places(id, rooms).iter().all(|place| place.is_some_and(|p| p.epoch == Epoch::FOREIGN)), "{id}");
        }
    }

    #[test]
    fn an_event_stream_is_refused_for_good_only_where_a_retry_cannot_help() {
        let asked = |carrier| TransportRequest::new(carrier, vec![]);
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
