//! One poll: its rooms and cursors, and what there is after them. It looks first at what its shard has in memory and
//! then at history. Called by `http`, which makes it, and by `wait`. It holds a watch on each of its rooms, so that
//! their messages reach this shard.

use super::answer::{BYTES_MAX, PollResult};
use crate::{
    policy::{class::Class, rights::Act},
    protocol::{
        address::PollSession,
        command::{HISTORY_LIMIT_MAX, JoinOptions},
        error::Refusal,
        native,
    },
    random::random_below,
    shard::{Look, Shard, Watch},
    transport::{
        post,
        request::{Transport, TransportRequest, split_since},
    },
};
use fanfare_broker::{BrokerError, Cursor, HistoryQuery, Page, Purpose, Room};
use hyper::{
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use std::{borrow::Cow, collections::BTreeMap, rc::Rc, time::Duration};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// How long a poll waits: by default, and at most.
const WAIT: Duration = Duration::from_secs(25);
const WAIT_MAX: Duration = Duration::from_secs(55);
/// Messages in one answer: by default, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;
/// Messages in the first page that is read of history: enough for most polls, and 2 MiB if each has the largest size.
const PAGE_FIRST: usize = 32;
/// How long the backplane may take to confirm that it sends a room's messages, which is one round trip.
const FOLLOW_TIME: Duration = Duration::from_secs(1);
/// The shortest presence lease of a client that polls without waiting.
const LEASE_SHORT: Duration = Duration::from_secs(30);
/// How long the presence lease of a waiting poll lasts beyond the wait: time for the client to poll again.
const LEASE_SPARE: Duration = Duration::from_secs(10);
/// Bounds of the time between two short polls, in milliseconds, before the random part.
const NEXT_MS_MIN: u64 = 1_000;
const NEXT_MS_MAX: u64 = 30_000;

/// One poll.
pub(in crate::transport) struct Poll {
    pub(super) shard: Rc<Shard>,
    rooms: Vec<PollRoom>,
    session: PollSession,
    /// The client sent the session that an earlier poll was answered with: it is present in its rooms.
    is_present: bool,
    /// The client gives its leases back, and is answered at once.
    leaves: bool,
    /// When to renew its leases again, if they were renewed too lately when it came.
    pub(super) renew_at: Option<Instant>,
    /// For how long it may wait; zero: not at all.
    pub(super) wait: Duration,
    limit: usize,
    /// Messages of history for a room without a cursor.
    last: usize,
    /// The rooms came in a body with their names, so their cursors are answered with names too.
    by_name: bool,
    known_tags: Option<HeaderValue>,
    /// Notified when something happens in one of its rooms, the backplane goes, or the node begins to drain.
    pub(super) wake: Rc<Notify>,
}

/// One of a poll's rooms.
pub(super) struct PollRoom {
    name: Room,
    since: Option<Cursor>,
    watch: Watch,
    /// `since` is ahead of what has been delivered to this shard, and history has nothing after it either.
    is_ahead: bool,
}

/// The body of a poll that names its rooms there.
#[derive(Deserialize)]
struct PollBody {
    rooms: BTreeMap<String, Option<String>>,
    wait: Option<u64>,
    limit: Option<usize>,
    last: Option<usize>,
    session: Option<String>,
    leave: Option<bool>,
}

impl Poll {
    pub(in crate::transport) fn of_url(
        shard: &Rc<Shard>,
        asked: &TransportRequest,
        headers: &HeaderMap,
    ) -> Result<Self, Refusal> {
        let since = split_since(asked.since.as_deref(), asked.rooms.len())?;
        let since = since.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut poll = Self::new(shard, asked, since)?;
        // Only a poll that does not wait can be answered "not modified": one that waits, waits for a change.
        if poll.wait.is_zero() {
            poll.known_tags = headers.get(header::IF_NONE_MATCH).cloned();
        }
        Ok(poll)
    }

    pub(in crate::transport) async fn of_body(shard: &Rc<Shard>, body: Incoming) -> Result<Self, Refusal> {
        let body = post::read(body).await?;
        let body: PollBody =
            serde_json::from_slice(&body).map_err(|why| Refusal::bad_request(format!("not a poll: {why}")))?;
        let since = body.rooms.values().map(|since| native::cursor(since.as_deref().map(Cow::Borrowed)));
        let since = since.collect::<Result<Vec<_>, _>>()?;
        let last = body.last.unwrap_or(0).min(HISTORY_LIMIT_MAX);
        let asked = TransportRequest {
            options: JoinOptions { last, ..JoinOptions::default() },
            wait: body.wait.map(Duration::from_secs),
            limit: body.limit,
            session: body.session,
            leaves: body.leave.unwrap_or(false),
            ..TransportRequest::new(Transport::Poll, body.rooms.into_keys().collect())
        };
        Ok(Self { by_name: true, ..Self::new(shard, &asked, since)? })
    }

    fn new(shard: &Rc<Shard>, asked: &TransportRequest, since: Vec<Option<Cursor>>) -> Result<Self, Refusal> {
        let node = &shard.node;
        let rooms: Vec<(Room, Class)> = asked.checked_rooms(node, Act::Join)?;
        if rooms.iter().any(|(_, class)| class.history.is_none()) {
            return Err(Refusal::history_off());
        }
        // A draining node takes no new clients. A client with a cursor is not new, nor is one that leaves, and its poll is
        // answered at once.
        if node.drain.is_draining() && !asked.leaves && since.iter().all(Option::is_none) {
            return Err(Refusal::draining());
        }
        let given = asked.session.as_deref().map(|session| {
            session.parse().map_err(|()| Refusal::bad_request("session is not a value from the answer to a poll"))
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
            leaves: asked.leaves,
            renew_at: None,
            wait: if asked.leaves { Duration::ZERO } else { asked.wait.unwrap_or(WAIT).min(WAIT_MAX) },
            limit: asked.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX),
            last: asked.options.last,
            by_name: false,
            known_tags: None,
            wake,
        })
    }

    /// Why the backplane does not serve one of its rooms; `None` also if it has not been away for long.
    pub(super) fn away(&self) -> Option<BrokerError> {
        self.rooms.iter().find_map(|room| self.shard.away(&room.name))
    }

    /// An error: its session has been kicked out of one of the rooms.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        let session = self.session.id();
        self.rooms.iter().try_for_each(|room| self.shard.node.leases.admit(&room.name, session))
    }

    /// Renews its presence leases for as long as it waits, and for the time until the next poll; or gives them back.
    /// Those of a poll that does not wait are renewed with its answer.
    /// An error: its session has been kicked out of one of the rooms.
    pub(super) fn renew_leases(&mut self) -> Result<(), Refusal> {
        let (session, leases) = (self.session.id(), &self.shard.node.leases);
        self.renew_at = None;
        if self.leaves && self.is_present {
            self.rooms.iter().for_each(|room| drop(leases.give_back(&room.name, session)));
            return Ok(());
        }
        if !self.is_present || self.wait.is_zero() {
            return self.admit();
        }
        for room in &self.rooms {
            let again = leases.renew_unless_lately(&room.name, session, self.wait + LEASE_SPARE)?;
            self.renew_at = self.renew_at.max(again.map(Instant::from_std));
        }
        Ok(())
    }

    /// Renews the leases of a poll that does not wait. Its client is to come back after `next_ms`; it may be late, so it has
    /// three times that.
    pub(super) fn renew_short_leases(&self, next_ms: u64) {
        if self.is_present && self.wait.is_zero() && !self.leaves {
            let (session, leases) = (self.session.id(), &self.shard.node.leases);
            let ttl = LEASE_SHORT.max(Duration::from_millis(3 * next_ms));
            // A kick since the poll began is told to the next poll.
            let _ = self.rooms.iter().try_for_each(|room| leases.renew(&room.name, session, ttl));
        }
    }

    /// Whether the client has this state already, by its `If-None-Match`.
    pub(super) fn is_unmodified(&self, found: &PollResult) -> bool {
        self.known_tags.as_ref().is_some_and(|tags| found.is_named_by(tags.as_bytes()))
    }

    /// What there is after the poll's cursors. An error: the backplane does not serve all its rooms.
    pub(super) async fn collect(&mut self) -> Result<PollResult, Refusal> {
        let names = self.rooms.iter().map(|room| room.name.clone()).collect();
        let (bytes_max, hold) = self.shard.answer_space(BYTES_MAX)?;
        let mut found = PollResult::new(self.session, names, self.by_name, bytes_max, hold);
        found.is_tagged = self.wait.is_zero() && !self.by_name;
        // The shard has to know where all rooms stand before the first one is looked at. Otherwise a message that arrives
        // in a room during the wait for another one would wake that wait only, and not this poll afterwards.
        let deadline = Instant::now() + FOLLOW_TIME;
        for room in &self.rooms {
            self.wait_until_followed(room, deadline).await?;
        }
        for index in 0..self.rooms.len() {
            self.collect_room(index, &mut found).await?;
        }
        found.next_ms = self.next_ms();
        Ok(found)
    }

    async fn collect_room(&mut self, index: usize, found: &mut PollResult) -> Result<(), Refusal> {
        let limit = self.limit.saturating_sub(found.count);
        let last = self.last;
        let room = &mut self.rooms[index];
        // Either memory or history gives a page of messages, or nothing is to be taken and the room is done.
        let page = match room.watch.look(room.since) {
            Look::NotYet => return Err(room.watch.refusal().into()),
            // A room without a cursor begins here, or with the last messages.
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
            // Other rooms have filled the answer.
            _ if limit == 0 || found.is_full() => {
                found.leave_for_later(room.since);
                return Ok(());
            }
            Look::Messages(publications) => {
                let from = room.since.or(publications.first().and_then(|p| p.cursor));
                let head = publications.last().and_then(|p| p.cursor).or(from);
                let (Some(from), Some(head)) = (from, head) else { return Ok(()) };
                Page { publications, from, head, gap: None }
            }
            // History had nothing either when it was last read, and whatever comes wakes this poll.
            Look::Ahead if room.is_ahead => {
                found.ends.extend(room.since);
                return Ok(());
            }
            Look::Ahead | Look::InHistory => {
                let page = read(&room.watch, room.since, limit, found.bytes_left()).await?;
                room.is_ahead = page.publications.is_empty() && page.gap.is_none();
                page
            }
        };
        found.take(&room.name, &page, limit);
        Ok(())
    }

    /// Waits until the shard knows where the room stands, which the backplane says when it confirms the subscription.
    async fn wait_until_followed(&self, room: &PollRoom, deadline: Instant) -> Result<(), Refusal> {
        while matches!(room.watch.look(room.since), Look::NotYet) {
            self.shard.node.broker.availability(&room.name)?;
            if timeout_at(deadline, self.wake.notified()).await.is_err() {
                return Err(room.watch.refusal().into());
            }
        }
        Ok(())
    }

    /// When the client is to poll again. After a long poll at once. After a short one in half of the time for which nothing
    /// has come, so that the time between the polls of a quiet room grows by half with each.
    fn next_ms(&self) -> u64 {
        let draining = self.shard.node.drain.is_draining();
        if !self.wait.is_zero() && !draining {
            return 0;
        }
        let idle_ms = self.rooms.iter().map(|room| room.watch.idle_ms()).min().unwrap_or(0);
        let pace = if draining { NEXT_MS_MIN } else { (idle_ms / 2).clamp(NEXT_MS_MIN, NEXT_MS_MAX) };
        // A random fifth more or less, so that clients that polled in one moment do not stay together.
        pace * 4 / 5 + random_below(pace * 2 / 5)
    }
}

/// The last `last` messages of a room, or as many of them as `bytes` have room for, judged by the first page.
async fn read_last(watch: &Watch, last: usize, bytes: usize) -> Result<Page, BrokerError> {
    let first = if bytes == 0 { 1 } else { last.min(PAGE_FIRST) };
    let page = watch.read(HistoryQuery { since: None, limit: first, purpose: Purpose::Resume }).await?;
    let size = page.publications.iter().map(|p| p.payload.len()).sum::<usize>();
    let fitting = bytes / (size / page.publications.len().max(1)).max(1);
    match last.min(fitting) {
        limit if limit > first && page.publications.len() == first => {
            watch.read(HistoryQuery { since: None, limit, purpose: Purpose::Resume }).await
        }
        _ => Ok(page),
    }
}

/// The messages of history after a cursor, up to `messages` and `bytes` and not much more: each page is as large as the
/// size of the messages so far suggests.
async fn read(watch: &Watch, since: Option<Cursor>, messages: usize, bytes: usize) -> Result<Page, BrokerError> {
    let query = |since, limit: usize| HistoryQuery {
        since,
        limit: limit.clamp(1, HISTORY_LIMIT_MAX),
        purpose: Purpose::Resume,
    };
    let mut page = watch.read(query(since, messages.min(PAGE_FIRST))).await?;
    loop {
        let (had, size) = (page.publications.len(), page.publications.iter().map(|p| p.payload.len()).sum::<usize>());
        if had >= messages || size >= bytes || page.end() == page.head {
            return Ok(page);
        }
        let fitting = (bytes - size) / (size / had.max(1)).max(1) + 1;
        let next = watch.read(query(Some(page.end()), fitting.min(messages - had))).await?;
        page.head = next.head;
        if next.gap.is_some() || next.publications.is_empty() {
            return Ok(page); // the next poll gets the gap
        }
        page.publications.extend(next.publications);
    }
}
