//! The commands `presence` and `history`: the broker has their answers, which may be long. Begun by `commands`.
//!
//! The questions that come over a session's own connection wait for their turn. Nothing is read for one before the client
//! has got the answers to those before it, and has read most of that. Posted questions are answered in the response to
//! the post, at once.

use super::{
    SessionRef, Shard, State,
    conn::{Question, Subject},
    member_list::{inline, is_inline, members_frame, split},
    presence::PausedEvents,
    reply_to::ReplyTo,
};
use crate::protocol::{
    error::{ErrorCode, Refusal},
    event::Event,
    native,
};
use fanfare_broker::{HistoryQuery, Presence, Room};
use std::{rc::Rc, time::Duration};
use tokio::time::sleep;

/// Questions of one session that wait: as many as its rate lets it ask in one moment. Each takes some 200 bytes and the
/// room's name, and counts as what waits for clients.
const QUESTIONS_MAX: usize = 1_000;
/// While another member list is on its way to the client, a question for the list looks this often whether it has ended.
const LIST_LOOK: Duration = Duration::from_millis(20);

impl State {
    /// Begins to answer a question, or lets it wait for those that its client has asked before.
    pub(super) fn ask(&mut self, reply_to: ReplyTo, room: Room, subject: Subject) {
        if reply_to.post.is_some() {
            return self.spawn(|shard| shard.answer_post(reply_to, room, subject));
        }
        let session = reply_to.session;
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        let questions = &mut conn.unfinished.get_or_insert_default().questions;
        if questions.len() >= QUESTIONS_MAX {
            let many = "too many questions of this session wait for their answers";
            let refusal = Refusal::new(ErrorCode::BackplaneOverloaded, many).retry_after(1000);
            return self.refuse(reply_to, Some(room.as_str()), refusal);
        }
        let hold = self.outgoing.held.hold(size_of::<Question>() + room.as_str().len());
        questions.push_back(Question { id: reply_to.id, room, subject, _hold: hold });
        if questions.len() == 1 {
            self.spawn(|shard| shard.answer_in_turn(session));
        }
    }

    /// The question whose turn it is.
    fn question(&mut self, session: SessionRef) -> Option<(ReplyTo, Room, Subject)> {
        let unfinished = self.outgoing.sessions.get_open(session)?.unfinished.as_ref()?;
        let Question { id, room, subject, .. } = unfinished.questions.front()?;
        Some((ReplyTo { id: *id, ..ReplyTo::without_id(session) }, room.clone(), *subject))
    }

    /// The number of the session's latest join of the room, if it is in there.
    fn join_number(&mut self, session: SessionRef, room: &Room) -> Option<u32> {
        let index = self.rooms.find(room.as_str())?;
        Some(self.outgoing.sessions.get_open(session)?.session.membership(index)?.join)
    }

    /// That question is answered. Returns whether there is another one.
    fn end_question(&mut self, session: SessionRef) -> bool {
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return false };
        let Some(unfinished) = &mut conn.unfinished else { return false };
        unfinished.questions.pop_front();
        let has_more = !unfinished.questions.is_empty();
        conn.drop_finished();
        has_more
    }
}

impl Shard {
    /// Answers a session's questions one after the other, until none is left.
    async fn answer_in_turn(self: Rc<Self>, session: SessionRef) {
        // Space first, so that an answer that the client cannot take yet is not read.
        while self.has_space(session).await {
            let question = self.state.borrow_mut().question(session);
            let Some((reply_to, room, subject)) = question else { return };
            match subject {
                Subject::Members => self.answer_members(reply_to, &room).await,
                Subject::History(query) => self.answer_history(reply_to, &room, query).await,
            }
            if !self.state.borrow_mut().end_question(session) {
                return;
            }
        }
    }

    async fn answer_history(&self, reply_to: ReplyTo, room: &Room, query: HistoryQuery) {
        let page = self.node.history(room, query).await;
        if !self.has_space(reply_to.session).await {
            return;
        }
        let state = &mut *self.state.borrow_mut();
        match page {
            Ok(page) => state.send_text(reply_to.session.index, &native::history(reply_to.id, room, &page)),
            Err(refusal) => state.refuse(reply_to, Some(room.as_str()), refusal),
        }
    }

    /// Answers with the list of members; a long one follows in portions. Events that come meanwhile come after it.
    async fn answer_members(&self, reply_to: ReplyTo, room: &Room) {
        let session = reply_to.session;
        let (paused, presence) = loop {
            let paused = self.pause_events(session, room).await;
            let join = self.state.borrow_mut().join_number(session, room);
            let presence = self.node.presence(room).await;
            if !self.has_space(session).await {
                return;
            }
            // If a join has come meanwhile, its list may be newer.
            if self.state.borrow_mut().join_number(session, room) == join {
                break (paused, presence);
            }
        };
        let listed = match presence {
            Ok(presence) => {
                self.send_members(reply_to, room, &presence).await;
                presence.version
            }
            Err(refusal) => {
                self.state.borrow_mut().refuse(reply_to, Some(room.as_str()), refusal);
                u64::MAX // no list that could be older than the events before it
            }
        };
        if let Some(paused) = paused {
            self.state.borrow_mut().resume_events(paused, listed);
        }
    }

    /// See [`State::pause_events`]. Waits for another list that is on its way to the client: the portions of two lists
    /// must not mix. That list does not come while the backplane is away, and neither does this one.
    async fn pause_events(&self, session: SessionRef, room: &Room) -> Option<PausedEvents> {
        loop {
            let paused = self.state.borrow_mut().pause_events(session, room);
            if paused.is_some() || self.node.broker.availability(room).is_err() {
                return paused.flatten();
            }
            sleep(LIST_LOOK).await;
        }
    }

    async fn send_members(&self, ReplyTo { session, id, .. }: ReplyTo, room: &Room, presence: &Presence) {
        let (count, members, more) = (presence.users, inline(presence), !is_inline(presence));
        self.state.borrow_mut().send(session.index, &Event::Presence { id, room: room.as_str(), count, members, more });
        let page_bytes = self.state.borrow().page_bytes();
        let mut pages = split(&presence.members, page_bytes).peekable();
        while let Some(page) = pages.next().filter(|_| more) {
            if !self.has_space(session).await {
                return;
            }
            let state = &mut *self.state.borrow_mut();
            let Some(shape) = state.outgoing.sessions.get_open(session).map(|conn| conn.shape) else { return };
            state.queue(session.index, members_frame(shape, id, room, page, pages.peek().is_some()));
        }
    }

    /// Answers a posted question, with all members if it asks for those.
    async fn answer_post(self: Rc<Self>, reply_to: ReplyTo, room: Room, subject: Subject) {
        let id = reply_to.id;
        let text = match subject {
            Subject::Members => self.node.presence(&room).await.map(|presence| {
                let members = presence.members.iter().map(Into::into).collect();
                let (room, count) = (room.as_str(), presence.users);
                native::encode(&Event::Presence { id, room, count, members, more: false })
            }),
            Subject::History(query) => {
                self.node.history(&room, query).await.map(|page| native::history(id, &room, &page))
            }
        };
        let state = &mut *self.state.borrow_mut();
        if state.outgoing.sessions.get_open(reply_to.session).is_none() {
            return;
        }
        match text {
            Ok(text) => state.reply_to_post(reply_to, text),
            Err(refusal) => state.refuse(reply_to, Some(room.as_str()), refusal),
        }
    }

    /// Waits until the session's outbox has space for an answer; `false`: the session has ended.
    async fn has_space(&self, session: SessionRef) -> bool {
        loop {
            let drained = {
                let state = &mut *self.state.borrow_mut();
                let Some(conn) = state.outgoing.sessions.get_open(session) else { return false };
                let Some(drained) = conn.wait_to_answer(&self.node.outbox_limits) else { return true };
                drained
            };
            if drained.await.is_err() {
                return false;
            }
        }
    }
}
