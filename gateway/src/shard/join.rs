//! PendingPresence into rooms. A join becomes a member only when it has had everything up to where the room's feed stands, in one
//! step that nothing can come between: that is what makes history and live deliveries meet without a hole or a repeat.

use super::{
    Shard, State,
    commands::ReplyTo,
    conn::SessionRef,
    feed::Step,
    retry::Retry,
    rooms::{CustomMember, PendingPresence, RoomKey, excluded},
};
use crate::{
    protocol::{
        FrameShape,
        command::{HISTORY_LIMIT_MAX, JoinOptions, PresenceWish},
        end_event,
        error::{ErrorCode, Refusal},
        event::{Event, Missed},
        native, put_frame,
    },
    session::{Frames, Stage},
};
use bytes::BytesMut;
use fanfare_broker::{
    BrokerError, Cursor, Gap, HistoryQuery, Page, Presence, PresenceDetail, PresenceUpdate, Publication, Room,
};
use std::{borrow::Cow, collections::VecDeque, rc::Rc, time::Duration};
use tokio::sync::oneshot;

/// Messages read from history at a time.
const PAGE: usize = 100;
/// How long a join waits for a feed that is behind it.
const FEED_WAIT: Duration = Duration::from_millis(20);

/// Members in the answer to a join that was posted; a stream has them all.
const ANSWERED_MEMBERS_MAX: usize = 1_000;

/// A join under way.
#[derive(Debug)]
pub(super) struct Join {
    asker: ReplyTo,
    room: RoomKey,
    /// The session's number for it; an older one is not wanted any more.
    number: u32,
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
    pub(super) fn join(self: &Rc<Self>, state: &mut State, asker: ReplyTo, room: &Room, options: JoinOptions) {
        let entered = self.enter(state, asker.who, room, options.presence);
        let (key, number, from) = match entered {
            Ok(entered) => entered,
            Err(refusal) => return self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal),
        };
        let join = Join { asker, room: key, number, options, from };
        let Some(entry) = state.rooms.get_mut(key.0) else { return };
        if entry.feed.is_subscribing() {
            let earlier = entry.waiting.iter().position(|earlier| earlier.asker.who == join.asker.who);
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
        let (key, made) = state.rooms.find_or_make(room, self.now_ms(), || class);
        let shape = conn.shape;
        let number = conn.session.begin_join(key);
        let session = conn.session.id;
        let user = conn.session.user().cloned();
        let Some(entry) = state.rooms.get_mut(key) else {
            return Err(Refusal::new(ErrorCode::Internal, "the room is gone"));
        };
        let mut from = None;
        match present {
            Some(membership) if membership.stage == Stage::Member => {
                entry.remove_member(who.index, shape);
                from = entry.feed.position().map(fanfare_broker::Position::cursor);
            }
            Some(_) => {}
            None => {
                entry.occupants += 1;
                self.node.metrics.members.inc();
                let enter = PresenceUpdate::Enter { session, user, info: None, announce: class.presence };
                drop(self.node.broker.update_presence(room, enter));
            }
        }
        entry.pending_presence.retain(|pending| pending.session != who.index);
        let generation = entry.generation;
        if wish == PresenceWish::Members {
            entry.pending_presence.push(PendingPresence { session: who.index, shape, events: Vec::new() });
        }
        if from.is_some() {
            // No member until it has come in again: what it has had so far is noted, for those who ask meanwhile.
            state.note_reached(who.index, (key, from));
        }
        let room_key = (key, generation);
        if made {
            self.start_following(room_key);
        }
        Ok((room_key, number, from))
    }

    pub(super) fn start_following(self: &Rc<Self>, key: RoomKey) {
        self.node.metrics.rooms.inc();
        tokio::task::spawn_local(Rc::clone(self).follow(key));
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
        entry.wake_parked();
        self.apply(state, key.0, step);
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
            let Some(conn) = state.sessions.open(join.asker.who) else { return Ok(Presence::default()) };
            if !conn.session.is_joining(join.room.0, join.number) {
                return Ok(Presence::default());
            }
            let user = conn.session.user().cloned();
            PresenceUpdate::Enter { session: conn.session.id, user, info: None, announce: true }
        };
        self.node.broker.update_presence(name, enter).await?;
        self.node.broker.presence(name, PresenceDetail::Members).await
    }

    /// Sends what can be sent and completes the join if that was all; else says what to wait for. `None`: completed,
    /// or not wanted any more.
    fn advance(&self, state: &mut State, join: &Join, progress: &mut Progress) -> Option<Wait> {
        let conn = state.sessions.open(join.asker.who)?;
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
        let conn = state.sessions.open(join.asker.who)?;
        let excluded = excluded(conn.session.id, &join.options);
        while !progress.pending.is_empty() {
            let conn = state.sessions.open(join.asker.who)?;
            if conn.outbox.is_half_full(&self.node.outbox_limits) {
                let (tell, drained) = oneshot::channel();
                conn.drained.get_or_insert_default().0.push(tell);
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
            if !publication.author.is_some_and(|author| excluded.contains(&author)) {
                self.send_message(state, join, &name, &publication);
            }
        }
        None
    }

    /// Queues one message of the past, beyond the outbox's limits: [`Shard::send_pending`] paces by itself.
    fn send_message(&self, state: &mut State, join: &Join, room: &Room, publication: &Publication) {
        let who = join.asker.who;
        let text = native::MessageText::new(room, publication);
        let id = state.note_reached(who.index, (join.room.0, publication.cursor));
        let Some(conn) = state.sessions.open(who) else { return };
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, conn.shape, &text.parts(publication));
        if conn.shape == FrameShape::Event {
            end_event(&mut bytes, id.as_deref());
        }
        state.outbox_bytes += bytes.len();
        conn.outbox.push_unbounded(Frames { bytes: bytes.freeze(), count: 1 }, self.now_ms());
        self.node.metrics.delivered[conn.shape as usize].inc();
        self.mark_dirty(state, who.index, super::conn::FlushQueue::Urgent);
    }

    /// Takes a page of history: `joined` goes out with the first, a later one may tell a gap.
    fn open_page(self: &Rc<Self>, join: &Join, progress: &mut Progress, page: Page) {
        let state = &mut *self.state.borrow_mut();
        let wanted = |conn: &mut super::Conn| conn.session.is_joining(join.room.0, join.number);
        if !state.sessions.open(join.asker.who).is_some_and(wanted) {
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
        self.apply(state, join.room.0, step);
        match progress.reached {
            None if join.options.since.is_none() && page.gap.is_some() && join.from.is_some() => {
                self.open_join(state, join, progress, (join.from, None));
                if let Some(from) = join.from {
                    self.send_gap(state, join, &name, (from, page.from));
                }
                progress.reached = Some(page.from);
            }
            None => self.open_join(state, join, progress, (Some(page.from), page.gap)),
            Some(from) if page.gap.is_some() => {
                self.send_gap(state, join, &name, (from, page.from));
                progress.reached = Some(page.from);
            }
            Some(_) => {}
        }
        progress.pending = page.publications.into();
    }

    fn send_gap(&self, state: &mut State, join: &Join, room: &Room, (from, to): (Cursor, Cursor)) {
        let gap = Event::Gap { room, from, to };
        self.send_at(state, join.asker.who.index, &gap, Some((join.room.0, Some(to))));
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
        let mut joined = Event::Joined {
            id: join.asker.id,
            room: &name,
            cursor,
            resumed,
            gap: gap.filter(|_| resumed.is_some()).map(Missed::from),
            members: presence.map(|p| p.members.iter().map(Into::into).collect()),
        };
        // A stream tells it too: there it stands before the messages that follow from it.
        self.send_at(state, join.asker.who.index, &joined, Some((join.room.0, cursor)));
        if let Event::Joined { members, .. } = &mut joined {
            members.take_if(|members| members.len() > ANSWERED_MEMBERS_MAX);
        }
        self.answer(state, join.asker, &joined);
    }

    /// Makes the session a member: from here on it gets what the feed delivers.
    fn complete(&self, state: &mut State, join: &Join, progress: &Progress) {
        let Some(conn) = state.sessions.open(join.asker.who) else { return };
        if !conn.session.complete_join(join.room.0, join.number) {
            return;
        }
        let version = progress.presence.as_ref().map_or(0, |p| p.version);
        let Some(entry) = state.rooms.same(join.room) else { return };
        entry.add_member(CustomMember {
            session: join.asker.who.index,
            shape: conn.shape,
            has_own_ids: !conn.shares_frames(&entry.name),
            presence_after: (join.options.presence == PresenceWish::Members).then_some(version),
            excluded: excluded(conn.session.id, &join.options),
        });
        let came = entry.pending_presence.iter().position(|pending| pending.session == join.asker.who.index);
        let Some(came) = came.map(|place| entry.pending_presence.swap_remove(place)) else { return };
        for (_, frames) in came.events.into_iter().filter(|(at, _)| *at > version) {
            self.queue(state, join.asker.who.index, frames);
        }
    }

    /// A join that a later one, or a leave, has overtaken: whoever waits for its number is answered. It is nobody's
    /// fault and counts as no error.
    fn answer_superseded(&self, state: &mut State, join: &Join) {
        let Some(name) = state.rooms.same(join.room).map(|entry| entry.name.clone()) else { return };
        let ReplyTo { who, id, post } = join.asker;
        if (id.is_none() && post.is_none()) || state.sessions.open(who).is_none() {
            return;
        }
        let overtaken = "a later join or leave of this room has overtaken this one";
        let refusal = Refusal::new(ErrorCode::NotJoined, overtaken);
        let error = Event::refusal(id, Some(Cow::Borrowed(name.as_str())), &refusal);
        self.reply(state, join.asker, &error);
    }

    /// Gives a join up: the client is told why and is not in the room.
    fn abandon(self: &Rc<Self>, join: &Join, refusal: Refusal) {
        let state = &mut *self.state.borrow_mut();
        let Some(conn) = state.sessions.open(join.asker.who) else { return };
        if !conn.session.is_joining(join.room.0, join.number) {
            return;
        }
        conn.session.leave(join.room.0);
        let Some(name) = state.rooms.get(join.room.0).map(|entry| entry.name.clone()) else { return };
        self.vacate(state, join.asker.who, join.room.0, Stage::Joining);
        self.refuse(state, join.asker, Some(Cow::Borrowed(name.as_str())), refusal);
        if join.from.is_some() && state.sessions.open(join.asker.who).is_some() {
            // It was a member before it asked to join again, and is none any more.
            self.send(state, join.asker.who.index, &Event::Left { id: None, room: &name, reason: None });
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
