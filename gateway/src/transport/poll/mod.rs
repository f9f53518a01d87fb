//! Long and short polling: a request that asks for what comes after its cursors, at once or within some time. The cursor
//! is the acknowledgement: nothing is kept for a poll and nothing is forgotten when it is answered, so a lost answer, two
//! polls at once and another node are all the same. Here is how a poll looks and waits; `poll_answer` is what it says.
//!
//! A poll that waits holds its socket, a small task and a place in its rooms; its connection has left hyper, and goes back
//! there when it has been answered.

mod answer;

use super::{
    post,
    request::{Transport, TransportRequest, split_since},
};
use crate::{
    http::{finish::Finish, head::head, problem::problem},
    policy::{class::Class, peer::ConnectionPermit, rights::Act},
    protocol::{address::PollSession, command::HISTORY_LIMIT_MAX, error::Refusal, native},
    random::random_below,
    shard::{CountedRequest, Look, Shard, Watch},
};
use answer::{PollResult, not_modified};
use axum::body::Body;
use bytes::Bytes;
use fanfare_broker::{BrokerError, Cursor, HistoryQuery, Page, Room};
use http_body_util::BodyExt as _;
use hyper::{
    Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use serde::Deserialize;
use std::{
    borrow::Cow, collections::BTreeMap, future::poll_fn, net::IpAddr, rc::Rc, sync::Arc, task::Poll as Progress,
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

/// How long a poll waits: without being asked, and at most.
const WAIT: Duration = Duration::from_secs(25);
const WAIT_MAX: Duration = Duration::from_secs(55);
/// Messages in one answer: without being asked, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;
/// Messages in the first page that is read of history: enough for most, and 2 MiB where each is as large as it may be.
const PAGE_FIRST: usize = 32;
/// A poll that was woken waits so long for more.
const LINGER: Duration = Duration::from_millis(15);
/// How long a room may take to be followed, which is a round trip to the backplane.
const FOLLOW_TIME: Duration = Duration::from_secs(1);
/// What a client has after its poll's time to come again, before it counts as gone.
const LEASE_SPARE: Duration = Duration::from_secs(10);
/// The shortest lease of one that does not wait.
const LEASE_SHORT: Duration = Duration::from_secs(30);
/// Time for the client to take an answer: as long as the oldest frame may wait in an outbox.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// One poll.
pub(super) struct Poll {
    pub(super) shard: Rc<Shard>,
    pub(super) rooms: Vec<PollRoom>,
    pub(super) session: PollSession,
    /// The client repeated its session's value: it wants to be present.
    is_present: bool,
    pub(super) wait: Duration,
    limit: usize,
    last: usize,
    /// The rooms came with names, so their cursors go back with names.
    pub(super) by_name: bool,
    unchanged: Option<HeaderValue>,
    wake: Rc<Notify>,
}

/// One of a poll's rooms.
pub(super) struct PollRoom {
    pub(super) name: Room,
    since: Option<Cursor>,
    pub(super) watch: Watch,
    /// History has said that there is nothing after `since`, although less has been delivered here.
    is_ahead: bool,
}

/// A poll whose rooms are in its body.
#[derive(Deserialize)]
struct PollBody {
    rooms: BTreeMap<String, Option<String>>,
    wait: Option<u64>,
    limit: Option<usize>,
    last: Option<usize>,
    session: Option<String>,
}

impl Poll {
    /// The poll that a URL asks for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of_url(
        shard: &Rc<Shard>,
        asked: &TransportRequest,
        unchanged: Option<HeaderValue>,
    ) -> Result<Self, Refusal> {
        let since = split_since(asked.since.as_deref(), asked.rooms.len())?;
        let since = since.into_iter().collect::<Result<Vec<_>, _>>()?;
        Self::new(shard, asked, since, unchanged)
    }

    /// The poll that a body asks for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn of_body(shard: &Rc<Shard>, body: Incoming) -> Result<Self, Refusal> {
        let body = post::read(body).await?;
        let body: PollBody =
            serde_json::from_slice(&body).map_err(|why| Refusal::bad_request(format!("not a poll: {why}")))?;
        let since = body.rooms.values().map(|since| native::cursor(since.as_deref().map(Cow::Borrowed)));
        let since = since.collect::<Result<Vec<_>, _>>()?;
        let asked = TransportRequest {
            wait: body.wait.map(Duration::from_secs),
            limit: body.limit,
            last: body.last.unwrap_or(0).min(HISTORY_LIMIT_MAX),
            session: body.session,
            ..TransportRequest::new(Transport::Poll, body.rooms.into_keys().collect())
        };
        Ok(Self { by_name: true, ..Self::new(shard, &asked, since, None)? })
    }

    fn new(
        shard: &Rc<Shard>,
        asked: &TransportRequest,
        since: Vec<Option<Cursor>>,
        unchanged: Option<HeaderValue>,
    ) -> Result<Self, Refusal> {
        let node = &shard.node;
        let rooms: Vec<(Room, Class)> = asked.checked_rooms(node, Act::Join)?;
        if rooms.iter().any(|(_, class)| class.history.is_none()) {
            return Err(Refusal::history_off());
        }
        // Who comes with a cursor goes on somewhere; who comes without is new.
        if node.drain.is_draining() && since.iter().all(Option::is_none) {
            return Err(Refusal::draining());
        }
        let given = asked.session.as_deref().map(|session| {
            session.parse().map_err(|()| Refusal::bad_request("session is no value that a poll was answered with"))
        });
        let given = given.transpose()?;
        let wake = Rc::new(Notify::new());
        let watch = |((name, class), since): ((Room, Class), _)| {
            let watch = shard.watch(&name, class, &wake)?;
            Ok(PollRoom { name, since, watch, is_ahead: false })
        };
        Ok(Self {
            rooms: rooms.into_iter().zip(since).map(watch).collect::<Result<_, Refusal>>()?,
            shard: Rc::clone(shard),
            session: given.unwrap_or_else(PollSession::random),
            is_present: given.is_some(),
            wait: asked.wait.unwrap_or(WAIT).min(WAIT_MAX),
            limit: asked.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX),
            last: asked.last,
            by_name: false,
            unchanged: unchanged.filter(|_| asked.wait.is_some_and(|wait| wait.is_zero())),
            wake,
        })
    }

    /// Looks once; `None` if there is nothing to say and the poll is to wait.
    pub(super) async fn first_look(&mut self) -> Option<Response<Body>> {
        let lasts = if self.wait.is_zero() { LEASE_SHORT } else { self.wait + LEASE_SPARE };
        let found = match self.lease(lasts) {
            Ok(()) if !self.is_backed() => Err(unavailable()),
            Ok(()) => self.collect().await,
            Err(refusal) => Err(refusal),
        };
        match found {
            Ok(found) if found.is_news() || self.wait.is_zero() => Some(self.answer(&found)),
            Ok(found) if self.shard.node.drain.is_draining() => Some(self.answer(&found)),
            Ok(_) => None,
            Err(refusal) => Some(problem(&refusal)),
        }
    }

    /// Whether the backplane has all its rooms.
    fn is_backed(&self) -> bool {
        self.rooms.iter().all(|room| self.shard.node.broker.is_up(&room.name))
    }

    fn is_admitted(&self) -> Result<(), Refusal> {
        let session = self.session.id();
        self.rooms.iter().try_for_each(|room| self.shard.node.leases.admit(&room.name, session))
    }

    fn lease(&self, lasts: Duration) -> Result<(), Refusal> {
        if !self.is_present {
            return Ok(());
        }
        let session = self.session.id();
        self.rooms.iter().try_for_each(|room| self.shard.node.leases.renew(&room.name, session, lasts))
    }

    fn answer(&self, found: &PollResult) -> Response<Body> {
        let metrics = &self.shard.node.metrics;
        metrics.delivered_poll.inc_by(found.count as u64);
        if self.wait.is_zero() {
            // It is expected back after `next_ms`; three times that may be longer than what it has.
            let _ = self.lease(LEASE_SHORT.max(Duration::from_millis(3 * found.next_ms)));
        }
        if self.unchanged.as_ref().is_some_and(|tag| found.is_unmodified(tag.as_bytes())) {
            metrics.polls_unmodified.inc();
            return not_modified(found);
        }
        let counter = if found.count > 0 { &metrics.polls_with_messages } else { &metrics.polls_empty };
        counter.inc();
        found.response(self)
    }

    // --- looking ---

    /// What there is after the poll's cursors.
    async fn collect(&mut self) -> Result<PollResult, Refusal> {
        let mut found = PollResult::for_rooms(self.rooms.iter().map(|room| &room.name));
        let deadline = Instant::now() + FOLLOW_TIME;
        // All of them first: a message that wakes this wait is seen by the looks that follow.
        for place in 0..self.rooms.len() {
            self.followed(place, deadline).await?;
        }
        for place in 0..self.rooms.len() {
            self.collect_room(place, &mut found).await?;
        }
        found.next_ms = self.next_ms();
        Ok(found)
    }

    async fn collect_room(&mut self, place: usize, found: &mut PollResult) -> Result<(), Refusal> {
        let limit = self.limit.saturating_sub(found.count);
        let last = self.last;
        let room = &mut self.rooms[place];
        let page = match room.watch.look(room.since) {
            Look::NotYet => return Err(BrokerError::Unavailable.into()),
            Look::Head(head) if last == 0 => {
                found.is_fresh = true;
                found.ends.push(head);
                return Ok(());
            }
            Look::Head(_) => {
                found.is_fresh = true;
                read_last(&room.watch, last, found.bytes_left()).await?
            }
            Look::Nothing => {
                found.ends.extend(room.since);
                return Ok(());
            }
            _ if limit == 0 || found.bytes_left() == 0 => {
                found.leave(room.since);
                return Ok(());
            }
            Look::Messages(publications) => {
                let from = room.since.or(publications.first().and_then(|p| p.cursor));
                let head = publications.last().and_then(|p| p.cursor).or(from);
                let (Some(from), Some(head)) = (from, head) else { return Ok(()) };
                Page { publications, from, head, gap: None }
            }
            Look::Ahead if room.is_ahead => {
                found.ends.extend(room.since);
                return Ok(());
            }
            Look::Ahead | Look::InHistory => {
                let page = read(&room.watch, room.since, (limit, found.bytes_left())).await?;
                room.is_ahead = page.publications.is_empty() && page.gap.is_none();
                page
            }
        };
        found.take(&room.name, &page, limit);
        Ok(())
    }

    /// Waits until the room is followed, which the backplane confirms.
    async fn followed(&self, place: usize, deadline: Instant) -> Result<(), Refusal> {
        let room = &self.rooms[place];
        while matches!(room.watch.look(room.since), Look::NotYet) {
            let is_up = self.shard.node.broker.is_up(&room.name);
            if !is_up || timeout_at(deadline, self.wake.notified()).await.is_err() {
                return Err(BrokerError::Unavailable.into());
            }
        }
        Ok(())
    }

    /// When a client that does not wait is to ask again: after half of the time for which nothing has come, so that the
    /// time between polls grows by half with each; a long poll at once.
    fn next_ms(&self) -> u64 {
        let draining = self.shard.node.drain.is_draining();
        if !self.wait.is_zero() && !draining {
            return 0;
        }
        let idle_ms = self.rooms.iter().map(|room| room.watch.idle_ms()).min().unwrap_or(0);
        let pace = if draining { NEXT_MS_MIN } else { (idle_ms / 2).clamp(NEXT_MS_MIN, NEXT_MS_MAX) };
        // A fifth more or less by chance: clients of one moment do not stay together.
        pace * 4 / 5 + random_below(pace * 2 / 5)
    }
}

/// The last messages, so many or as many as fit.
async fn read_last(watch: &Watch, last: usize, bytes: usize) -> Result<Page, BrokerError> {
    let first = if bytes == 0 { 1 } else { last.min(PAGE_FIRST) };
    let page = watch.read(HistoryQuery { since: None, limit: first }).await?;
    let size = page.publications.iter().map(|p| p.payload.len()).sum::<usize>();
    let fitting = bytes / (size / page.publications.len().max(1)).max(1);
    match last.min(fitting) {
        limit if limit > first && page.publications.len() == first => {
            watch.read(HistoryQuery { since: None, limit }).await
        }
        _ => Ok(page),
    }
}

/// What history has after a place, in as many pages as it takes, and not much more than fits: a page is as large as its
/// messages are small.
async fn read(watch: &Watch, since: Option<Cursor>, (limit, bytes): (usize, usize)) -> Result<Page, BrokerError> {
    let query = |since, limit: usize| HistoryQuery { since, limit: limit.clamp(1, HISTORY_LIMIT_MAX) };
    let mut page = watch.read(query(since, limit.min(PAGE_FIRST))).await?;
    loop {
        let (had, size) = (page.publications.len(), page.publications.iter().map(|p| p.payload.len()).sum::<usize>());
        if had >= limit || size >= bytes || page.end() == page.head {
            return Ok(page);
        }
        let fitting = (bytes - size) / (size / had.max(1)).max(1) + 1;
        let next = watch.read(query(Some(page.end()), fitting.min(limit - had))).await?;
        page.head = next.head;
        if next.gap.is_some() || next.publications.is_empty() {
            return Ok(page); // the next poll is told
        }
        page.publications.extend(next.publications);
    }
}

/// Bounds of the time between two short polls, in milliseconds, before chance.
const NEXT_MS_MIN: u64 = 1_000;
const NEXT_MS_MAX: u64 = 30_000;

/// Why a poll that waits looks up.
#[derive(Clone, Copy)]
enum Turn {
    Woken,
    TimeUp,
}

/// A poll that waits, and what its answer needs.
pub(super) struct Parked {
    poll: Poll,
    is_kept: bool,
    finish: Finish,
    _counted: CountedRequest,
    /// Its place among its address's connections.
    _seat: Option<ConnectionPermit>,
}

impl Parked {
    /// # Errors
    /// The client's address has as many connections as it may.
    pub(super) fn new(
        poll: Poll,
        client: IpAddr,
        is_kept: bool,
        (finish, counted): (Finish, CountedRequest),
    ) -> Result<Self, Refusal> {
        let seat = poll.shard.node.seat(client)?;
        Ok(Self { poll, is_kept, finish, _counted: counted, _seat: seat })
    }

    /// Answers when there is something to say, or in time; gives the socket back if another request may come over it. This
    /// future lives as long as the poll waits: what it needs only for a moment is boxed, and a test bounds it.
    pub(super) async fn answer(mut self: Box<Self>, socket: TcpStream, keep: bool) -> Option<TcpStream> {
        self.is_kept &= keep;
        let node = Arc::clone(&self.poll.shard.node);
        node.metrics.polls_waiting.inc();
        let mut deadline = Instant::now() + self.poll.wait.mul_f64(between(0.9, 1.0));
        let mut is_draining = false;
        let response = loop {
            let turn = tokio::select! {
                () = self.poll.wake.notified() => Turn::Woken,
                () = sleep_until(deadline) => Turn::TimeUp,
                () = gone(&socket) => break None,
            };
            if matches!(turn, Turn::Woken) && !is_draining && node.drain.is_draining() {
                // Answered early, spread over the drain like the closing of sessions.
                is_draining = true;
                let spread = self.poll.shard.poll_spread().mul_f64(between(0.0, 1.0));
                deadline = deadline.min(Instant::now() + spread);
            } else if let Some(response) = Box::pin(self.look(turn)).await {
                break Some(response);
            }
        };
        node.metrics.polls_waiting.dec();
        Box::pin(self.write(socket, response?)).await
    }

    /// Looks again; `None`: nothing to say yet.
    async fn look(&mut self, turn: Turn) -> Option<Response<Body>> {
        if matches!(turn, Turn::Woken) {
            if !self.poll.is_backed() {
                return Some(problem(&unavailable()));
            }
            if let Err(kicked) = self.poll.is_admitted() {
                return Some(problem(&kicked));
            }
            tokio::time::sleep(LINGER).await;
        }
        match self.poll.collect().await {
            Ok(found) if found.is_news() || matches!(turn, Turn::TimeUp) => Some(self.poll.answer(&found)),
            Ok(_) => None,
            Err(refusal) => Some(problem(&refusal)),
        }
    }

    async fn write(self: Box<Self>, mut socket: TcpStream, response: Response<Body>) -> Option<TcpStream> {
        let response = self.finish.response(response);
        let is_kept = self.is_kept && response.headers().get(header::CONNECTION).is_none();
        let bytes = self.bytes(response, is_kept).await;
        let written = tokio::time::timeout(WRITE_TIME, socket.write_all(&bytes)).await;
        (matches!(written, Ok(Ok(()))) && is_kept).then_some(socket)
    }

    /// The whole response.
    async fn bytes(&self, response: Response<Body>, is_kept: bool) -> Bytes {
        let (mut parts, body) = response.into_parts();
        // It is in memory: collecting it neither waits nor fails.
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        if !is_kept && parts.status != StatusCode::NOT_MODIFIED {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut bytes = head(&Response::from_parts(parts, ()));
        bytes.extend_from_slice(&body);
        bytes.freeze()
    }
}

/// The backplane went while a poll waited. By chance between 1 and 5 s: all polls of all nodes hear it in one moment.
fn unavailable() -> Refusal {
    Refusal::from(BrokerError::Unavailable).retry_after(1000 + random_below(4000))
}

/// Waits until the client has gone. One that sends its next request already is there.
async fn gone(socket: &TcpStream) {
    poll_fn(|cx| match socket.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
        Progress::Ready(Ok(0) | Err(_)) => Progress::Ready(()),
        Progress::Ready(Ok(_)) | Progress::Pending => Progress::Pending,
    })
    .await;
}

/// Between two numbers, by chance.
fn between(least: f64, most: f64) -> f64 {
    least + (most - least) * f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_that_waits_costs_a_small_task() {
        fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = [size_of_future(Parked::answer), size_of::<Parked>(), size_of::<PollRoom>()];
        // 320 in the program; more where tests build tokio with more of its features.
        assert!(sizes.into_iter().zip([352, 240, 72]).all(|(size, most)| size <= most), "{sizes:?}");
    }
}
