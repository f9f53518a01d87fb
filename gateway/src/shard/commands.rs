//! What clients ask for, done: the session judges a command, this file acts. Called by `transport` with whole frames.

use super::{Shard, State, conn::SessionRef, posts::ReplyNumber};
use crate::{
    protocol::{
        close::CloseReason,
        command::{JoinOptions, Request, RequestId},
        error::{ErrorCode, Refusal},
        event::Event,
        native::{self, DecodeError, Sender},
    },
    session::{Action, NO_ID, PublishAction, answer_id},
    time::unix_ms,
};
use fanfare_broker::{HistoryQuery, PresenceDetail, Publish, PublishResult, Reply, Room, Ticket};
use std::{borrow::Cow, rc::Rc};

/// Who asked, and where the answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyTo {
    pub(super) who: SessionRef,
    pub(super) id: RequestId,
    /// The command was posted: the answer to this number goes back to whoever posted it.
    pub(super) post: Option<ReplyNumber>,
}

impl ReplyTo {
    /// A session that did not ask by a command.
    pub(super) fn unnumbered(who: SessionRef) -> Self {
        Self { who, id: None, post: None }
    }
}

impl Shard {
    /// One text frame of a client.
    pub(crate) fn receive(self: &Rc<Self>, who: SessionRef, text: &str) {
        self.command(&mut self.state.borrow_mut(), ReplyTo::unnumbered(who), text);
    }

    /// One command, from wherever it came; whether it is a join.
    pub(super) fn command(self: &Rc<Self>, state: &mut State, asker: ReplyTo, text: &str) -> bool {
        let now_ms = self.now_ms();
        let Some(conn) = state.sessions.open(asker.who) else { return false };
        let (id, action) = match native::decode(text) {
            Ok(command) => {
                let (id, publishes) = (command.id, matches!(command.request, Request::Publish(_)));
                let action = conn.session.handle(command, &self.node.limits, now_ms);
                if matches!(&action, Action::Refuse { refusal, .. } if refusal.code == ErrorCode::RateLimited) {
                    let metrics = &self.node.metrics;
                    let limited = if publishes { &metrics.rate_limited_publish } else { &metrics.rate_limited_request };
                    limited.inc();
                }
                (id, action)
            }
            Err(DecodeError::Refused { id, refusal }) => (id, conn.session.refuse(None, refusal, now_ms)),
            Err(DecodeError::NotOurProtocol) if asker.post.is_some() => {
                (None, conn.session.refuse(None, Refusal::bad_request("a command is a JSON object"), now_ms))
            }
            Err(DecodeError::NotOurProtocol) => {
                self.end(state, asker.who, CloseReason::NotOurProtocol, None);
                return false;
            }
        };
        let joins = matches!(action, Action::Join(..));
        self.act(state, ReplyTo { id, ..asker }, action);
        joins
    }

    /// Answers a command: over the session's own connection, or to whoever posted it.
    pub(super) fn reply(&self, state: &mut State, asker: ReplyTo, event: &Event<'_>) {
        match asker.post {
            Some(_) => self.answer(state, asker, event),
            None => self.send(state, asker.who.index, event),
        }
    }

    /// Answers a command only if it was posted.
    pub(super) fn answer(&self, state: &mut State, asker: ReplyTo, event: &Event<'_>) {
        if asker.post.is_some() {
            self.reply_to_post(state, asker, native::encode(event));
        }
    }

    /// A room that stands in the URL.
    pub(crate) fn join_by_url(self: &Rc<Self>, who: SessionRef, room: &str, options: Result<JoinOptions, Refusal>) {
        let state = &mut *self.state.borrow_mut();
        let refusal = match (Room::parse(room), options) {
            (Ok(room), Ok(options)) => return self.join(state, ReplyTo::unnumbered(who), &room, options),
            (Err(why), _) => why.into(),
            (_, Err(refusal)) => refusal,
        };
        self.refuse(state, ReplyTo::unnumbered(who), Some(Cow::Borrowed(room)), refusal);
    }

    /// Something else in the URL is wrong.
    pub(crate) fn refuse_url(&self, who: SessionRef, refusal: Refusal) {
        self.refuse(&mut self.state.borrow_mut(), ReplyTo::unnumbered(who), None, refusal);
    }

    fn act(self: &Rc<Self>, state: &mut State, asker: ReplyTo, action: Action<'_>) {
        let ReplyTo { who, id, .. } = asker;
        match action {
            Action::Publish(publish) => self.publish(state, asker, publish),
            Action::Join(room, options) => self.join(state, asker, &room, options),
            Action::Leave(room) => {
                if !self.leave(state, who, room.as_str()) {
                    let refusal = Refusal::new(ErrorCode::NotJoined, "this session is not in the room");
                    return self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal);
                }
                let left = Event::Left { id, room: &room, reason: None };
                self.send(state, who.index, &left);
                self.answer(state, asker, &left);
            }
            Action::Presence(room) => drop(tokio::task::spawn_local(Rc::clone(self).presence(asker, room))),
            Action::History { room, since, limit } => {
                let query = HistoryQuery { since, limit };
                drop(tokio::task::spawn_local(Rc::clone(self).history(asker, room, query)));
            }
            Action::Pong => self.reply(state, asker, &Event::Pong { id }),
            Action::Refuse { room, refusal, close } => self.send_refusal(state, asker, (room, refusal), close),
        }
    }

    /// Refuses a request on the session's account.
    pub(super) fn refuse(&self, state: &mut State, asker: ReplyTo, room: Option<Cow<'_, str>>, refusal: Refusal) {
        let now_ms = self.now_ms();
        let Some(conn) = state.sessions.open(asker.who) else { return };
        if let Action::Refuse { room, refusal, close } = conn.session.refuse(room, refusal, now_ms) {
            self.send_refusal(state, asker, (room, refusal), close);
        }
    }

    fn send_refusal(
        &self,
        state: &mut State,
        asker: ReplyTo,
        (room, refusal): (Option<Cow<'_, str>>, Refusal),
        close: Option<CloseReason>,
    ) {
        self.reply(state, asker, &Event::refusal(asker.id, room, &refusal));
        if let Some(reason) = close {
            self.node.metrics.rate_limited_errors.inc();
            self.end(state, asker.who, reason, None);
        }
    }

    // --- publishing ---

    fn publish(&self, state: &mut State, asker: ReplyTo, publish: PublishAction<'_>) {
        let ReplyTo { who, id, post } = asker;
        let PublishAction { room, data, event, key } = publish;
        if let Err(refusal) = native::check_size(data, self.node.limits.message_bytes) {
            return self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal);
        }
        let Some(conn) = state.sessions.open(who) else { return };
        let from = Sender::Session(conn.session.id, conn.session.user());
        let payload = native::payload(data, event.as_deref(), from);
        let post_bits = post.map_or(0, |number| u64::from(number.get()) << 32);
        let ticket = Ticket([who.to_u64(), answer_id(id), post_bits | u64::from(self.now_ms())]);
        let (author, shape) = (Some(conn.session.id), conn.shape);
        let publish = Publish {
            retention: self.retention(state, &room),
            author,
            room,
            ts_ms: unix_ms(),
            payload: payload.into(),
            key,
        };
        self.node.metrics.published[shape as usize].inc();
        let reply = match (id, post) {
            (None, None) => Reply::OnFailure(self.me, ticket),
            _ => Reply::Ticket(self.me, ticket),
        };
        self.node.broker.publish(publish, reply);
    }

    /// The room's class, from its entry if the shard follows it: no pattern is matched per message then.
    fn retention(&self, state: &State, room: &Room) -> Option<fanfare_broker::Retention> {
        let followed = state.rooms.find(room.as_str()).and_then(|key| state.rooms.get(key));
        followed.map_or_else(|| self.node.classes.of(room.as_str()), |entry| entry.class).history
    }

    /// The broker's answer to a publish.
    pub(super) fn on_published(&self, state: &mut State, ticket: Ticket, room: &Room, outcome: PublishResult) {
        let Ticket([session, id, post_and_time]) = ticket;
        let (began_ms, post) = (post_and_time as u32, ReplyNumber::new((post_and_time >> 32) as u32));
        let who = SessionRef::from_u64(session);
        let id = Some(id).filter(|id| *id != NO_ID);
        let asker = ReplyTo { who, id, post };
        if state.sessions.open(who).is_none() {
            return;
        }
        match outcome {
            Ok(published) => {
                let ms = self.now_ms().wrapping_sub(began_ms);
                self.node.metrics.publish_seconds.observe(f64::from(ms) / 1000.0);
                self.node.metrics.backplane_publish_seconds.observe(f64::from(ms) / 1000.0);
                let room = Cow::Borrowed(room.as_str());
                self.reply(state, asker, &Event::Published { id, room, cursor: published.cursor });
            }
            Err(why) => self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), why.into()),
        }
    }

    // --- questions that the broker answers ---

    async fn presence(self: Rc<Self>, asker: ReplyTo, room: Room) {
        let answer = if self.node.classes.of(room.as_str()).presence {
            self.node.broker.presence(&room, PresenceDetail::Members).await.map_err(Refusal::from)
        } else {
            Err(Refusal::presence_off())
        };
        let state = &mut *self.state.borrow_mut();
        if state.sessions.open(asker.who).is_none() {
            return;
        }
        match answer {
            Ok(presence) => {
                let members = presence.members.iter().map(Into::into).collect();
                let presence = Event::Presence { id: asker.id, room: &room, count: presence.users, members };
                self.reply(state, asker, &presence);
            }
            Err(refusal) => self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal),
        }
    }

    async fn history(self: Rc<Self>, asker: ReplyTo, room: Room, query: HistoryQuery) {
        let answer = match self.node.classes.of(room.as_str()).history {
            Some(retention) => self.node.broker.history(&room, retention, query).await.map_err(Refusal::from),
            None => Err(Refusal::history_off()),
        };
        let state = &mut *self.state.borrow_mut();
        if state.sessions.open(asker.who).is_none() {
            return;
        }
        match answer {
            Ok(mut page) => {
                page.cut(self.node.outbox_limits.bytes / 2, query.since.is_none());
                let text = native::history(asker.id, &room, &page);
                match asker.post {
                    Some(_) => self.reply_to_post(state, asker, text),
                    None => self.send_text(state, asker.who.index, &text),
                }
            }
            Err(refusal) => self.refuse(state, asker, Some(Cow::Borrowed(room.as_str())), refusal),
        }
    }
}
