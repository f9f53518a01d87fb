//! Coming and going. A join becomes a member only when it has had everything up to where the room's feed stands, in one
//! step that nothing can come between: that is what makes history and live deliveries meet without a hole or a repeat.

use super::{
    Shard, State,
    commands::Asker,
    conn::SessionRef,
    feed::Step,
    retry::Retry,
    rooms::{Coming, RoomKey, Special},
};
use crate::{
    command::{HISTORY_LIMIT_MAX, JoinOptions, PresenceWish, RequestId},
    error::{ErrorCode, Refusal},
    event::{Event, Missed},
    protocol::{FrameShape, native, put_frame},
    session::{Frames, Stage},
};
use bytes::BytesMut;
use fanfare_broker::{
    Attendance, BrokerError, Cursor, Detail, Gap, HistoryQuery, Origin, Page, Presence, Publication, Room,
};
use std::{borrow::Cow, collections::VecDeque, rc::Rc, time::Duration};
use tokio::sync::oneshot;

/// Messages read from history at a time.
const PAGE: usize = 100;
/// How long an empty room stays followed: its next member costs no subscription, and flapping costs none at all.
const LINGER_MS: u32 = 2_000;
/// How long a join waits for a feed that is behind it.
const FEED_WAIT: Duration = Duration::from_millis(20);

/// A join under way.
#[derive(Debug)]
pub(super) struct Join {
    session: SessionRef,
    room: RoomKey,
    /// The session's number for it; an older one is not wanted any more.
    number: u32,
    id: RequestId,
    options: JoinOptions,
    /// Where a session stood that was a member already: from there it goes on, whatever the new join asks for.
    from: Option<Cursor>,
}

/// How far a join has come.
#[derive(Debug, Default)]
struct Progress {
    presence: Option<Presence>,
    /// Set once `joined` was sent: the last message the client has had.
    reached: Option<Cursor>,
    /// Read from history, not sent yet.
    pending: VecDeque<Publication>,
}

/// How `joined` begins: the place from which messages follow, and what is missing before it.
type Opening = (Option<Cursor>, Option<Gap>);

/// What a join that cannot complete yet waits for.
enum Wait {
    /// A page of history.
    History(HistoryQuery),
    /// Room in the client's outbox.
    Outbox(oneshot::Receiver<()>),
    /// The client is ahead of the feed, or in another epoch: a moment, then a page of history says which.
    Feed(HistoryQuery),
}

impl Shard {
    /// Begins a join that the session permits.
    pub(super) fn join(self: &Rc<Self>, state: &mut State, asker: Asker, room: &Room, options: JoinOptions) {
        let entered = self.enter(state, asker.who, room, options.presence);
        let (key, number, from) = match entered {
            Ok(entered) => entered,
            Err(refusal) => return self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal),
        };
        let join = Join { session: asker.who, room: key, number, id: asker.id, options, from };
        let Some(entry) = state.rooms.get_mut(key.0) else { return };
        if entry.feed.is_subscribing() {
            let earlier = entry.waiting.iter().position(|earlier| earlier.session == join.session);
            let earlier = earlier.map(|place| entry.waiting.swap_remove(place));
            entry.waiting.push(join);
            if let Some(earlier) = earlier {
                self.answer_superseded(state, &earlier);
            }
        } else {
            self.admit(state, join);
        }
    }

    /// Notes the session in the room, and begins to follow the room if nobody here did.
    fn enter(
        self: &Rc<Self>,
        state: &mut State,
        who: SessionRef,
        room: &Room,
        wish: PresenceWish,
    ) -> Result<(RoomKey, u32, Option<Cursor>), Refusal> {
        let found = state.rooms.find(room.as_str());
        let conn = state.sessions.open(who).ok_or_else(|| Refusal::new(ErrorCode::Internal, "the session is gone"))?;
        let present = found.and_then(|key| conn.session.membership(key));
        if present.is_none() {
            conn.session.may_enter(&self.node.limits)?;
        }
        let class = match found.and_then(|key| state.rooms.get(key)) {
            Some(entry) => entry.class,
            None => self.node.classes.of(room.as_str()),
        };
        if wish == PresenceWish::Members && !class.presence {
            return Err(Refusal::presence_off());
        }
        let (key, made) = state.rooms.find_or_make(room, || class);
        let number = conn.session.begin_join(key);
        let origin = Origin::from(conn.session.id);
        let user = conn.session.user().cloned();
        let Some(entry) = state.rooms.get_mut(key) else {
            return Err(Refusal::new(ErrorCode::Internal, "the room is gone"));
        };
        let mut from = None;
        match present {
            Some(membership) if membership.stage == Stage::Member => {
                entry.remove_member(who.index);
                from = entry.feed.position().map(fanfare_broker::Position::cursor);
            }
            Some(_) => {}
            None => {
                entry.occupants += 1;
                self.node.metrics.members.inc();
                let enter = Attendance::Enter { session: origin, user, info: None, announce: class.presence };
                drop(self.node.broker.attend(room, enter));
            }
        }
        entry.coming.retain(|coming| coming.session != who.index);
        if wish == PresenceWish::Members {
            entry.coming.push(Coming { session: who.index, events: Vec::new() });
        }
        let room_key = (key, entry.generation);
        if made {
            self.node.metrics.rooms.inc();
            tokio::task::spawn_local(Rc::clone(self).follow(room_key));
        }
        Ok((room_key, number, from))
    }

    /// Subscribes a room, as long as it takes, then lets in who waits.
    async fn follow(self: Rc<Self>, key: RoomKey) {
        let mut retry = Retry::new();
        loop {
            let Some((name, retention)) = self.room(key, |entry| (entry.name.clone(), entry.class.history)) else {
                return;
            };
            match self.node.broker.subscribe(self.me, &name, retention).await {
                Ok(head) => return self.on_followed(key, head),
                Err(why) => tracing::debug!(room = %name, %why, "cannot subscribe yet"),
            }
            retry.wait().await;
        }
    }

    fn on_followed(self: &Rc<Self>, key: RoomKey, head: Option<Cursor>) {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.rooms.same(key) else { return };
        let step = entry.feed.on_subscribed(head);
        let waiting = std::mem::take(&mut entry.waiting);
        self.obey(state, key.0, step);
        for join in waiting {
            self.admit(state, join);
        }
    }

    /// Completes a join at once if nothing has to be read for it.
    fn admit(self: &Rc<Self>, state: &mut State, join: Join) {
        let mut progress = Progress::default();
        if join.options.presence == PresenceWish::No && self.advance(state, &join, &mut progress).is_none() {
            return;
        }
        tokio::task::spawn_local(Rc::clone(self).admit_slowly(join, progress));
    }

    async fn admit_slowly(self: Rc<Self>, join: Join, mut progress: Progress) {
        if join.options.presence == PresenceWish::Members {
            let Some(name) = self.room(join.room, |entry| entry.name.clone()) else { return };
            progress.presence = match self.presence_with(&join, &name).await {
                Ok(presence) => Some(presence),
                Err(why) => return self.abandon(&join, why.into()),
            };
        }
        let mut retry = Retry::new();
        loop {
            let Some(wait) = self.advance(&mut self.state.borrow_mut(), &join, &mut progress) else { return };
            let query = match wait {
                Wait::Outbox(drained) => {
                    drop(drained.await); // a session that closes drops the sender
                    continue;
                }
                Wait::Feed(query) => {
                    tokio::time::sleep(FEED_WAIT).await;
                    query
                }
                Wait::History(query) => query,
            };
            match self.read_history(join.room, query).await {
                Some(Ok(page)) => {
                    retry.reset();
                    self.open_page(&join, &mut progress, page);
                }
                Some(Err(BrokerError::Unavailable | BrokerError::Overloaded)) => {
                    retry.wait().await;
                }
                Some(Err(why)) => return self.abandon(&join, why.into()),
                None => return,
            }
        }
    }

    /// Who is in the room, this session included: its own entry is confirmed first.
    async fn presence_with(&self, join: &Join, name: &Room) -> Result<Presence, BrokerError> {
        let enter = {
            let mut state = self.state.borrow_mut();
            let Some(conn) = state.sessions.open(join.session) else { return Ok(Presence::default()) };
            if !conn.session.is_joining(join.room.0, join.number) {
                return Ok(Presence::default());
            }
            let user = conn.session.user().cloned();
            Attendance::Enter { session: conn.session.id.into(), user, info: None, announce: true }
        };
        self.node.broker.attend(name, enter).await?;
        self.node.broker.presence(name, Detail::Members).await
    }

    /// Sends what can be sent and completes the join if that was all; else says what to wait for. `None`: completed,
    /// or not wanted any more.
    fn advance(&self, state: &mut State, join: &Join, progress: &mut Progress) -> Option<Wait> {
        let conn = state.sessions.open(join.session)?;
        if !conn.session.is_joining(join.room.0, join.number) {
            self.answer_superseded(state, join);
            return None;
        }
        if let Some(wait) = self.send_pending(state, join, progress) {
            return Some(wait);
        }
        let entry = state.rooms.same(join.room)?;
        let from = join.from.filter(|_| join.options.last == 0);
        let since = progress.reached.or(join.options.since).or(from);
        match (entry.feed.position().map(fanfare_broker::Position::cursor), since) {
            (None, _) => {
                let gap = join.options.since.map(|_| Gap { missed: None });
                self.open_join(state, join, progress, (None, gap));
            }
            (Some(at), None) if join.options.last == 0 => self.open_join(state, join, progress, (Some(at), None)),
            (Some(_), None) => {
                let limit = join.options.last.min(HISTORY_LIMIT_MAX);
                return Some(Wait::History(HistoryQuery { since: None, limit }));
            }
            (Some(at), Some(since)) if since == at => self.open_join(state, join, progress, (Some(at), None)),
            (Some(at), Some(since)) if since.epoch == at.epoch && since.offset < at.offset => {
                let Some(missed) = entry.ring_after(since) else {
                    return Some(Wait::History(HistoryQuery { since: Some(since), limit: PAGE }));
                };
                let missed: VecDeque<Publication> = missed.cloned().collect();
                self.open_join(state, join, progress, (Some(since), None));
                progress.pending = missed;
                return self.advance(state, join, progress);
            }
            (Some(_), Some(since)) => {
                let query = HistoryQuery { since: Some(since), limit: PAGE };
                return Some(if progress.reached.is_some() { Wait::Feed(query) } else { Wait::History(query) });
            }
        }
        self.complete(state, join, progress);
        None
    }

    /// Sends what was read, as far as the feed has come, half an outbox at a time.
    fn send_pending(&self, state: &mut State, join: &Join, progress: &mut Progress) -> Option<Wait> {
        let entry = state.rooms.same(join.room)?;
        let at = entry.feed.position();
        let name = entry.name.clone();
        let conn = state.sessions.open(join.session)?;
        let without = Special::of(join.session.index, conn.session.id, &join.options, 0).map(|s| s.without);
        while !progress.pending.is_empty() {
            let conn = state.sessions.open(join.session)?;
            if conn.outbox.is_half_full(&self.node.outbox_limits) {
                let (tell, drained) = oneshot::channel();
                conn.drained.push(tell);
                return Some(Wait::Outbox(drained));
            }
            let Some(publication) = progress.pending.pop_front() else { break };
            let Some(cursor) = publication.cursor else { continue };
            // What the feed has not had yet comes live.
            if at.is_some_and(|at| at.cursor().epoch == cursor.epoch && !at.covers(cursor)) {
                progress.pending.clear();
                break;
            }
            progress.reached = Some(cursor);
            if without.as_ref().is_some_and(|without| without.contains(&publication.origin)) {
                continue;
            }
            self.send_message(state, join.session, &name, &publication);
        }
        None
    }

    /// Queues one message of the past, beyond the outbox's limits: [`Shard::send_pending`] paces by itself.
    fn send_message(&self, state: &mut State, who: SessionRef, room: &Room, publication: &Publication) {
        let text = native::MessageText::new(room, publication);
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, FrameShape::NativeWebSocket, &text.parts(publication));
        let Some(conn) = state.sessions.open(who) else { return };
        state.outbox_bytes += bytes.len();
        conn.outbox.push_unbounded(Frames { bytes: bytes.freeze(), count: 1 }, self.now_ms());
        self.node.metrics.delivered_ws.inc();
        self.mark_dirty(state, who.index, super::conn::Lane::Urgent);
    }

    /// Takes a page of history: `joined` goes out with the first, a later one may tell a gap.
    fn open_page(self: &Rc<Self>, join: &Join, progress: &mut Progress, page: Page) {
        let state = &mut *self.state.borrow_mut();
        let wanted = |conn: &mut super::Conn| conn.session.is_joining(join.room.0, join.number);
        if !state.sessions.open(join.session).is_some_and(wanted) {
            return; // left or gone meanwhile: the next step sees it too
        }
        let Some(entry) = state.rooms.same(join.room) else { return };
        let name = entry.name.clone();
        // The feed may have lost the very message that would tell it: history's word is as good.
        let late = progress.reached.is_some() && page.publications.is_empty();
        let behind = entry
            .feed
            .position()
            .is_some_and(|at| at.cursor().epoch != page.head.epoch || (late && !at.covers(page.head)));
        let step = if behind { entry.feed.on_head(page.head) } else { Step::Nothing };
        self.obey(state, join.room.0, step);
        match progress.reached {
            None if join.options.since.is_none() && page.gap.is_some() && join.from.is_some() => {
                self.open_join(state, join, progress, (join.from, None));
                if let Some(from) = join.from {
                    self.send(state, join.session.index, &Event::Gap { room: &name, from, to: page.from });
                }
                progress.reached = Some(page.from);
            }
            None => self.open_join(state, join, progress, (Some(page.from), page.gap)),
            Some(from) if page.gap.is_some() => {
                self.send(state, join.session.index, &Event::Gap { room: &name, from, to: page.from });
                progress.reached = Some(page.from);
            }
            Some(_) => {}
        }
        progress.pending = page.publications.into();
    }

    /// Sends `joined`, once.
    fn open_join(&self, state: &mut State, join: &Join, progress: &mut Progress, (cursor, gap): Opening) {
        if progress.reached.is_some() {
            return;
        }
        progress.reached = cursor;
        let Some(entry) = state.rooms.same(join.room) else { return };
        let name = entry.name.clone();
        let resumed = join.options.since.map(|_| gap.is_none());
        match resumed {
            Some(true) => self.node.metrics.resumes_exact.inc(),
            Some(false) => self.node.metrics.resumes_gap.inc(),
            None => {}
        }
        let presence = progress.presence.as_ref();
        let joined = Event::Joined {
            id: join.id,
            room: &name,
            cursor,
            resumed,
            gap: gap.filter(|_| resumed.is_some()).map(Missed::from),
            members: presence.map(|p| p.members.iter().map(Into::into).collect()),
        };
        self.send(state, join.session.index, &joined);
    }

    /// Makes the session a member: from here on it gets what the feed delivers.
    fn complete(&self, state: &mut State, join: &Join, progress: &Progress) {
        let Some(conn) = state.sessions.open(join.session) else { return };
        if !conn.session.complete_join(join.room.0, join.number) {
            return;
        }
        let version = progress.presence.as_ref().map_or(0, |p| p.version);
        let special = Special::of(join.session.index, conn.session.id, &join.options, version);
        let Some(entry) = state.rooms.same(join.room) else { return };
        match special {
            Some(special) => entry.special.push(special),
            None => entry.plain.push(join.session.index),
        }
        let came = entry.coming.iter().position(|coming| coming.session == join.session.index);
        let Some(came) = came.map(|place| entry.coming.swap_remove(place)) else { return };
        for (_, frames) in came.events.into_iter().filter(|(at, _)| *at > version) {
            self.queue(state, join.session.index, frames);
        }
    }

    /// A join that a later one, or a leave, has overtaken: whoever waits for its number is answered. It is nobody's
    /// fault and counts as no error.
    fn answer_superseded(&self, state: &mut State, join: &Join) {
        let Some(name) = state.rooms.same(join.room).map(|entry| entry.name.clone()) else { return };
        if join.id.is_none() || state.sessions.open(join.session).is_none() {
            return;
        }
        let code = ErrorCode::NotJoined;
        let error = Event::Error {
            id: join.id,
            room: Some(Cow::Borrowed(name.as_str())),
            code,
            message: Cow::Borrowed("a later join or leave of this room has overtaken this one"),
            retryable: code.retryable(),
            retry_after_ms: None,
        };
        self.send(state, join.session.index, &error);
    }

    /// Gives a join up: the client is told why and is not in the room.
    fn abandon(self: &Rc<Self>, join: &Join, refusal: Refusal) {
        let state = &mut *self.state.borrow_mut();
        let Some(conn) = state.sessions.open(join.session) else { return };
        if !conn.session.is_joining(join.room.0, join.number) {
            return;
        }
        conn.session.leave(join.room.0);
        let Some(name) = state.rooms.get(join.room.0).map(|entry| entry.name.clone()) else { return };
        self.vacate(state, join.session, join.room.0, Stage::Joining);
        let asker = Asker { who: join.session, id: join.id };
        self.refuse(state, asker, Some(Cow::Borrowed(name.as_str())), refusal);
        if join.from.is_some() && state.sessions.open(join.session).is_some() {
            // It was a member before it asked to join again, and is none any more.
            self.send(state, join.session.index, &Event::Left { id: None, room: &name, reason: None });
        }
    }

    // --- going ---

    /// Takes a session out of one room; `false` if it was not in it.
    pub(super) fn leave(&self, state: &mut State, who: SessionRef, room: &str) -> bool {
        let Some(key) = state.rooms.find(room) else { return false };
        let Some(conn) = state.sessions.open(who) else { return false };
        let Some(membership) = conn.session.leave(key) else { return false };
        self.vacate(state, who, key, membership.stage);
        true
    }

    /// Takes a session that ends out of all its rooms.
    pub(super) fn leave_all(&self, state: &mut State, who: SessionRef) {
        let Some(conn) = state.sessions.get(who) else { return };
        for membership in conn.session.take_memberships() {
            self.vacate(state, who, membership.room, membership.stage);
        }
    }

    fn vacate(&self, state: &mut State, who: SessionRef, key: u32, stage: Stage) {
        let Some(conn) = state.sessions.get(who) else { return };
        let session = Origin::from(conn.session.id);
        let Some(entry) = state.rooms.get_mut(key) else { return };
        if stage == Stage::Member {
            entry.remove_member(who.index);
        }
        entry.coming.retain(|coming| coming.session != who.index);
        entry.occupants -= 1;
        self.node.metrics.members.dec();
        drop(self.node.broker.attend(&entry.name, Attendance::Leave { session, announce: entry.class.presence }));
        if entry.occupants == 0 {
            entry.emptied_ms = self.now_ms();
            let due = (entry.emptied_ms.wrapping_add(LINGER_MS), (key, entry.generation));
            self.wake_timers(state);
            state.lingering.push_back(due);
        }
    }

    /// Stops following rooms that have been empty for a while and still are.
    pub(super) fn let_go(&self, state: &mut State) {
        let now_ms = self.now_ms();
        let is_past = |due: u32| now_ms.wrapping_sub(due) < u32::MAX / 2;
        while state.lingering.front().is_some_and(|(due, _)| is_past(*due)) {
            let Some((_, key)) = state.lingering.pop_front() else { return };
            let empty = |entry: &mut super::rooms::RoomEntry| {
                entry.occupants == 0 && is_past(entry.emptied_ms.wrapping_add(LINGER_MS))
            };
            if !state.rooms.same(key).is_some_and(empty) {
                continue; // somebody is in it, or was since: that one's leaving filed it anew
            }
            if let Some(name) = state.rooms.remove(key.0) {
                self.node.broker.unsubscribe(self.me, &name);
                self.node.metrics.rooms.dec();
            }
        }
    }

    // --- reading ---

    pub(super) async fn read_history(&self, key: RoomKey, query: HistoryQuery) -> Option<Result<Page, BrokerError>> {
        let (name, retention) = self.room(key, |entry| (entry.name.clone(), entry.class.history))?;
        match retention {
            Some(retention) => Some(self.node.broker.history(&name, retention, query).await),
            None => Some(Err(BrokerError::HistoryOff)),
        }
    }

    fn room<T>(&self, key: RoomKey, read: impl FnOnce(&super::rooms::RoomEntry) -> T) -> Option<T> {
        self.state.borrow_mut().rooms.same(key).map(|entry| read(entry))
    }
}
