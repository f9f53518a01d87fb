//! The second half of a join: the client gets `joined`, then what it has missed. It becomes a member in the same step
//! in which it has caught up with the room's feed. No message can come between the last missed one and the membership,
//! so history and live messages meet without a hole and without a repeat.
//!
//! ```text
//! admit ──► advance ──► member                    nothing to read: done in one step
//!             │  ▲
//!             ▼  │ on_page
//!           wait: a page of history, the client's outbox, the feed
//! ```

use super::{
    Shard, State,
    catch_up::Retry,
    member_list::{inline, is_inline},
    members::{CustomMember, PresenceEvents},
    reply_to::ReplyTo,
    room::{Join, RoomRef},
    rooms::Reached,
};
use crate::protocol::{
    FrameShape,
    command::HISTORY_LIMIT_MAX,
    end_event,
    event::{Event, Missed},
    native, put_frame,
};
use bytes::BytesMut;
use fanfare_broker::{
    BrokerError, Cursor, Gap, HistoryQuery, Page, Position, Presence, PresenceDetail, PresenceUpdate, Publication,
    Purpose, Room,
};
use std::{collections::VecDeque, ops::Range, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Messages read from history at a time.
const PAGE: usize = 100;
/// How long a join waits for a feed that is behind its client, before it reads history once more.
const FEED_WAIT: Duration = Duration::from_millis(20);
/// How often a member list is asked for once more while the backplane has too much to do, or is away: 3 s together.
const BUSY_MAX: usize = 5;

/// A join on its way to membership.
#[derive(Debug)]
struct Admission {
    join: Join,
    /// Who is in the room, if the join asked for that.
    presence: Option<Arc<Presence>>,
    /// `joined` has been sent. From then on [`Conn::reached`] is the last message that the client has had.
    has_started: bool,
    /// Messages that were read and have not been sent.
    pending: VecDeque<Publication>,
}

/// What a join waits for before it can go on.
enum Wait {
    /// A page of history.
    History(HistoryQuery),
    /// The client reads slowly: until its outbox has space.
    Outbox(oneshot::Receiver<()>),
    /// The client is ahead of the feed. Mostly the feed follows in a moment; if it does not, this page of history shows
    /// why.
    Feed(HistoryQuery),
}

impl State {
    /// Completes a join at once if nothing has to be read for it; otherwise a task does.
    pub(super) fn admit(&mut self, join: Join) {
        let lists_members = join.options.wants_presence;
        let mut admission = Admission { join, presence: None, has_started: false, pending: VecDeque::new() };
        if lists_members || self.advance(&mut admission).is_some() {
            self.spawn(|shard| shard.admit_slowly(admission));
        }
    }

    /// Sends what can be sent, and makes the session a member if nothing is missing then. Otherwise returns what to
    /// wait for; `None`: the join is complete or no longer wanted.
    fn advance(&mut self, admission: &mut Admission) -> Option<Wait> {
        loop {
            let join = &admission.join;
            let conn = self.outgoing.sessions.get_open(join.session())?;
            if !conn.session.is_joining(join.room.index, join.number) {
                self.answer_superseded(join);
                return None;
            }
            // `joined` may have members, so that it waits for its turn too.
            if admission.presence.is_some()
                && !admission.has_started
                && let Some(drained) = conn.wait_for_space(&self.node.outbox_limits)
            {
                return Some(Wait::Outbox(drained));
            }
            if let Some(wait) = self.send_pending(admission) {
                return Some(wait);
            }
            // Compare the client's cursor with the feed's.
            let join = &admission.join;
            let entry = self.rooms.resolve(join.room)?;
            let conn = self.outgoing.sessions.get_open(join.session())?;
            // A member that joins again has had everything that the room's members have. A join that takes the place of
            // an earlier one goes on from what was sent for that.
            let membership = conn.session.membership(join.room.index)?;
            let reached = if membership.stage.is_member() { entry.cursor() } else { conn.reached(join.room.index) };
            let since = reached.or(join.options.since);
            let (cursor, gap) = match (entry.feed.position().map(Position::cursor), since) {
                (Some(_), _) if membership.stage.is_member() => (reached, None),
                // The room has no history: there is nothing to send first, and messages after the client's cursor are
                // lost.
                (None, _) => (None, join.options.since.map(|_| Gap { missed: None })),
                // A new client: it begins at the feed's cursor, or with the last few messages.
                (Some(at), None) if join.options.last == 0 => (Some(at), None),
                (Some(_), None) => {
                    let limit = join.options.last.min(HISTORY_LIMIT_MAX);
                    return Some(Wait::History(HistoryQuery { since: None, limit, purpose: Purpose::Resume }));
                }
                // The client has had everything.
                (Some(at), Some(since)) if since == at => (Some(at), None),
                // The client is behind: the ring may have what it missed, else history has.
                (Some(at), Some(since)) if since.epoch == at.epoch && since.offset < at.offset => {
                    let Some(missed) = entry.recent_after(since) else {
                        return Some(Wait::History(HistoryQuery {
                            since: Some(since),
                            limit: PAGE,
                            purpose: Purpose::Resume,
                        }));
                    };
                    let missed = missed.cloned().collect();
                    self.start(admission, Some(since), None);
                    admission.pending = missed;
                    continue;
                }
                // The client is ahead of the feed or in another epoch. History shows what it has missed.
                (Some(_), Some(since)) => {
                    let query = HistoryQuery { since: Some(since), limit: PAGE, purpose: Purpose::Resume };
                    return Some(if admission.has_started { Wait::Feed(query) } else { Wait::History(query) });
                }
            };
            self.start(admission, cursor, gap);
            self.complete(admission);
            return None;
        }
    }

    /// Sends messages that were read: none beyond the feed's cursor, and half an outbox at a time.
    fn send_pending(&mut self, admission: &mut Admission) -> Option<Wait> {
        let Admission { join, pending, .. } = admission;
        let entry = self.rooms.resolve(join.room)?;
        let at = entry.feed.position();
        let name = entry.name.clone();
        let conn = self.outgoing.sessions.get_open(join.session())?;
        let excluded = join.excluded(conn.session.id);
        while !pending.is_empty() {
            let conn = self.outgoing.sessions.get_open(join.session())?;
            if let Some(drained) = conn.wait_for_space(&self.node.outbox_limits) {
                return Some(Wait::Outbox(drained));
            }
            let Some(publication) = pending.pop_front() else { break };
            let Some(cursor) = publication.cursor else { continue };
            // The page of history has messages that the feed has not had. The feed will deliver them to all members.
            if at.is_some_and(|at| at.cursor().epoch == cursor.epoch && !at.covers(cursor)) {
                pending.clear();
                break;
            }
            conn.set_reached(join.room.index, cursor);
            if !publication.author.is_some_and(|author| excluded.contains(&author)) {
                self.send_message(join, &name, &publication);
            }
        }
        None
    }

    /// Queues one missed message. It may exceed the outbox's limits, because [`State::send_pending`] paces itself.
    fn send_message(&mut self, join: &Join, room: &Room, publication: &Publication) {
        let index = join.session().index;
        let text = native::MessageText::new(room, publication);
        let id = self.event_id(index, Reached { room: join.room.index, cursor: publication.cursor });
        let Some(shape) = self.outgoing.sessions.get_open(join.session()).map(|conn| conn.shape) else { return };
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, shape, &text.parts(publication));
        if shape == FrameShape::Sse {
            end_event(&mut bytes, id.as_deref());
        }
        self.node.metrics.delivered[shape as usize].inc();
        let frames = self.outgoing.held.own(bytes.freeze());
        self.outgoing.queue_unbounded(index, frames);
    }

    /// Takes a page of history. The first one decides the cursor and the gap in `joined`; a later one may show a gap.
    fn on_page(&mut self, admission: &mut Admission, page: Page) {
        let join = &admission.join;
        let conn = self.outgoing.sessions.get_open(join.session());
        let Some(conn) = conn.filter(|conn| conn.session.is_joining(join.room.index, join.number)) else {
            return; // left or gone meanwhile: `advance` sees it too
        };
        let reached = conn.reached(join.room.index);
        let Some(entry) = self.rooms.resolve(join.room) else { return };
        // Has the feed missed something that the page shows? If the page has another epoch, yes. If it has later
        // messages of the same epoch, only after a wait for the feed in vain, because until then they may be on their
        // way.
        let has_waited = admission.has_started && page.publications.is_empty();
        let is_behind = |at: Position| at.cursor().epoch != page.head.epoch || (has_waited && !at.covers(page.head));
        let hole = entry.feed.position().is_some_and(is_behind).then(|| entry.feed.on_head(page.head)).flatten();
        if let Some(since) = hole {
            self.start_catch_up(admission.join.room, since);
        }
        // A client that has had messages in this membership gets the gap as an event, as members do; a new one in `joined`.
        match (reached, page.gap) {
            (Some(reached), Some(_)) => {
                self.start(admission, Some(reached), None);
                self.send_gap(admission, reached..page.from);
            }
            (Some(reached), None) => self.start(admission, Some(reached), None),
            (None, gap) => self.start(admission, Some(page.from), gap),
        }
        admission.pending = page.publications.into();
    }

    fn send_gap(&mut self, admission: &mut Admission, Range { start: from, end: to }: Range<Cursor>) {
        let join = &admission.join;
        if let Some(conn) = self.outgoing.sessions.get_open(join.session()) {
            conn.set_reached(join.room.index, to);
        }
        let Some(room) = self.rooms.resolve(join.room).map(|entry| entry.name.clone()) else { return };
        let reached = Reached { room: join.room.index, cursor: Some(to) };
        self.send_at(join.session().index, &Event::Gap { room: room.as_str(), from, to }, reached);
    }

    /// Sends `joined`, once: messages follow from `cursor` (`None`: the room has no history), and `gap` is missing
    /// before it.
    fn start(&mut self, admission: &mut Admission, cursor: Option<Cursor>, gap: Option<Gap>) {
        if std::mem::replace(&mut admission.has_started, true) {
            return;
        }
        let Admission { join, presence, .. } = admission;
        if let (Some(cursor), Some(conn)) = (cursor, self.outgoing.sessions.get_open(join.session())) {
            conn.set_reached(join.room.index, cursor);
        }
        let Some(entry) = self.rooms.resolve(join.room) else { return };
        let name = entry.name.clone();
        let resumed = join.options.since.map(|_| gap.is_none());
        match resumed {
            Some(true) => self.node.metrics.resumes_exact.inc(),
            Some(false) => self.node.metrics.resumes_gap.inc(),
            None => {}
        }
        let joined = Event::Joined {
            id: join.reply_to.id,
            room: name.as_str(),
            cursor,
            resumed,
            gap: gap.filter(|_| resumed.is_some()).map(|gap| Missed { missed: gap.missed }),
            members: presence.as_deref().map(inline),
            more: presence.as_deref().is_some_and(|presence| !is_inline(presence)),
        };
        // A session whose join was posted gets it over its own connection too, before the messages that follow from its
        // cursor.
        self.send_at(join.session().index, &joined, Reached { room: join.room.index, cursor });
        self.reply_if_posted(join.reply_to, &joined);
        // The join is answered. What becomes of it from here on is no reply.
        join.reply_to = ReplyTo::without_id(join.session());
    }

    /// Makes the session a member: from the next pass on it gets what the feed delivers.
    fn complete(&mut self, admission: &Admission) {
        let Admission { join, presence, .. } = admission;
        let Some(conn) = self.outgoing.sessions.get_open(join.session()) else { return };
        let Some(membership) = conn.session.membership(join.room.index) else { return };
        if !conn.session.complete_join(join.room.index, join.number) {
            return;
        }
        let index = join.session().index;
        conn.forget_join(join.room.index);
        let Some(entry) = self.rooms.resolve(join.room) else { return };
        if membership.stage.is_member() {
            entry.members.remove(index, conn.shape);
        }
        entry.members.add(CustomMember {
            session: index,
            shape: conn.shape,
            has_own_ids: !conn.shares_frames(&entry.name),
            presence: if join.options.wants_presence { PresenceEvents::Held } else { PresenceEvents::No },
            excluded: join.excluded(conn.session.id),
        });
        if let Some(presence) = presence {
            self.list_members(join.session(), join.room, presence);
        }
    }
}

impl Shard {
    /// Waits for what a join needs and continues it, until it is complete or no longer wanted.
    async fn admit_slowly(self: Rc<Self>, mut admission: Admission) {
        if admission.join.options.wants_presence {
            admission.presence = match self.presence_with(&admission.join).await {
                Ok(presence) => Some(presence),
                Err(why) => return self.state.borrow_mut().abandon(&admission.join, why.into()),
            };
        }
        let mut retry = Retry::new();
        loop {
            let Some(wait) = self.state.borrow_mut().advance(&mut admission) else { return };
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
            match self.read_history(admission.join.room, query).await {
                Some(Ok(page)) => {
                    retry.reset();
                    self.state.borrow_mut().on_page(&mut admission, page);
                }
                // Until an operator has acted nobody knows for how long.
                Some(Err(why)) if why.is_temporary() && why != BrokerError::Misconfigured => retry.wait().await,
                Some(Err(why)) => return self.state.borrow_mut().abandon(&admission.join, why.into()),
                None => return,
            }
        }
    }

    /// Reads who is in the room. While a crowd has more for the backplane than it can take at once, and during a short loss
    /// of the backplane, it tries again.
    async fn presence_with(&self, join: &Join) -> Result<Arc<Presence>, BrokerError> {
        let mut retry = Retry::new();
        for _ in 0..BUSY_MAX {
            match self.try_presence_with(join).await {
                Err(BrokerError::Overloaded | BrokerError::Unavailable) => retry.wait().await,
                presence => return presence,
            }
        }
        self.try_presence_with(join).await
    }

    /// Reads who is in the room. First waits until the joining session's own entry is written, so that it is in the
    /// list.
    async fn try_presence_with(&self, join: &Join) -> Result<Arc<Presence>, BrokerError> {
        let Some(name) = self.room(join.room, |entry| entry.name.clone()) else { return Ok(Arc::default()) };
        let enter = {
            let mut state = self.state.borrow_mut();
            let conn = state.outgoing.sessions.get_open(join.session());
            let Some(conn) = conn.filter(|conn| conn.session.is_joining(join.room.index, join.number)) else {
                return Ok(Arc::default()); // `advance` sees that the join is no longer wanted
            };
            let user = conn.session.user().cloned();
            PresenceUpdate::Enter { session: conn.session.id, user, info: None, announce: true }
        };
        match self.node.broker.update_presence(&name, enter).await {
            // The entry is written when the backplane takes writes again; until then the list is without it.
            Ok(()) | Err(BrokerError::NotWritable) => {}
            Err(why) => return Err(why),
        }
        self.node.broker.presence(&name, PresenceDetail::Members).await
    }

    /// Reads a page of the room's history; `None` if this shard no longer follows the room.
    pub(super) async fn read_history(&self, room: RoomRef, query: HistoryQuery) -> Option<Result<Page, BrokerError>> {
        let (name, retention) = self.room(room, |entry| (entry.name.clone(), entry.class.history))?;
        match retention {
            Some(retention) => Some(self.node.broker.history(&name, retention, query).await),
            None => Some(Err(BrokerError::HistoryOff)),
        }
    }
}
