//! What clients ask by commands: `session` checks a command, this file executes it. Commands come from the transports,
//! as whole frames, and from `posted`.

use super::{
    SessionRef, Shard, State,
    conn::Subject,
    reply_to::{PublishTicket, ReplyTo},
};
use crate::{
    node::inbox::PublishDone,
    protocol::{
        close::CloseReason,
        command::{PublishRequest, Request},
        error::{ErrorCode, Refusal},
        event::Event,
        native::{self, DecodeError, Sender},
    },
    session::Action,
    time::unix_ms,
};
use fanfare_broker::{HistoryQuery, IdempotencyKey, Publish, Purpose, Reply, Room};
use std::borrow::Cow;

impl Shard {
    /// Executes the command in one text frame of a client.
    pub(crate) fn receive(&self, session: SessionRef, text: &str) {
        self.state.borrow_mut().command(ReplyTo::without_id(session), text);
    }

    /// Refuses a URL for a reason that concerns all of its rooms.
    pub(crate) fn refuse_url(&self, session: SessionRef, refusal: Refusal) {
        self.state.borrow_mut().refuse(ReplyTo::without_id(session), None, refusal);
    }
}

impl State {
    /// Executes one command; returns whether it is a join.
    pub(super) fn command(&mut self, reply_to: ReplyTo, text: &str) -> bool {
        let now_ms = self.clock.now_ms();
        let Some(conn) = self.outgoing.sessions.get_open(reply_to.session) else { return false };
        let (id, action) = match native::decode(text) {
            Ok(command) => {
                let (id, is_publish) = (command.id, matches!(command.request, Request::Publish(_)));
                let action = conn.session.handle(command, &self.node.limits, now_ms);
                if matches!(&action, Action::Refuse { refusal, .. } if refusal.code == ErrorCode::RateLimited) {
                    let metrics = &self.node.metrics;
                    if is_publish { &metrics.rate_limited_publish } else { &metrics.rate_limited_request }.inc();
                }
                (id, action)
            }
            Err(DecodeError::Refused { id, refusal }) => (id, conn.session.refuse(None, refusal, now_ms)),
            Err(DecodeError::NotOurProtocol) if reply_to.post.is_some() => {
                (None, conn.session.refuse(None, Refusal::bad_request("a command is a JSON object"), now_ms))
            }
            Err(DecodeError::NotOurProtocol) => {
                self.end(reply_to.session, CloseReason::NotOurProtocol, None);
                return false;
            }
        };
        let is_join = matches!(action, Action::Join(..));
        self.act(ReplyTo { id, ..reply_to }, action);
        is_join
    }

    fn act(&mut self, reply_to: ReplyTo, action: Action<'_>) {
        let ReplyTo { session, id, .. } = reply_to;
        match action {
            Action::Publish(room, key, request) => self.publish(reply_to, room, key, &request),
            Action::Join(room, options) => self.join(reply_to, &room, options),
            Action::Leave(room) if self.leave(session, room.as_str()) => {
                let left = Event::Left { id, room: room.as_str(), reason: None };
                self.send(session.index, &left);
                self.reply_if_posted(reply_to, &left);
            }
            Action::Leave(room) => {
                let refusal = Refusal::new(ErrorCode::NotJoined, "this session is not in the room");
                self.refuse(reply_to, Some(room.as_str()), refusal);
            }
            Action::Presence(room) => self.ask(reply_to, room, Subject::Members),
            Action::History { room, since, limit } => {
                let query = HistoryQuery { since, limit, purpose: Purpose::Question };
                self.ask(reply_to, room, Subject::History(query));
            }
            Action::Pong => self.reply(reply_to, &Event::Pong { id }),
            Action::Refuse { .. } => self.send_refusal(reply_to, action),
        }
    }

    // --- replies ---

    /// Replies to a command: over the session's own connection, or to the client that posted it.
    pub(super) fn reply(&mut self, reply_to: ReplyTo, event: &Event<'_>) {
        match reply_to.post {
            Some(_) => self.reply_if_posted(reply_to, event),
            None => self.send(reply_to.session.index, event),
        }
    }

    /// Replies to a command that was posted; for what goes over the session's own connection in any case.
    pub(super) fn reply_if_posted(&mut self, reply_to: ReplyTo, event: &Event<'_>) {
        if reply_to.post.is_some() {
            self.reply_to_post(reply_to, native::encode(event));
        }
    }

    /// Refuses a request. An error of the client's counts against its session, which ends if there are too many.
    pub(super) fn refuse(&mut self, reply_to: ReplyTo, room: Option<&str>, refusal: Refusal) {
        let now_ms = self.clock.now_ms();
        let Some(conn) = self.outgoing.sessions.get_open(reply_to.session) else { return };
        let action = conn.session.refuse(room.map(Cow::Borrowed), refusal, now_ms);
        self.send_refusal(reply_to, action);
    }

    fn send_refusal(&mut self, reply_to: ReplyTo, action: Action<'_>) {
        let Action::Refuse { room, refusal, close } = action else { return };
        self.reply(reply_to, &Event::refusal(reply_to.id, room, &refusal));
        if let Some(reason) = close {
            self.node.metrics.rate_limited_errors.inc();
            self.end(reply_to.session, reason, None);
        }
    }

    // --- publishing ---

    fn publish(
        &mut self,
        reply_to: ReplyTo,
        room: Room,
        key: Option<IdempotencyKey>,
        PublishRequest { data, event, .. }: &PublishRequest<'_>,
    ) {
        if let Err(refusal) = native::check_size(data, self.node.limits.message_bytes) {
            return self.refuse(reply_to, Some(room.as_str()), refusal);
        }
        let retention = self.class(&room).history;
        let Some(conn) = self.outgoing.sessions.get_open(reply_to.session) else { return };
        let sender = Sender::Session(conn.session.id, conn.session.user());
        let payload = native::payload(data, event.as_deref(), sender).into();
        let author = Some(conn.session.id);
        self.node.metrics.published[conn.shape as usize].inc();
        let ticket = PublishTicket { reply_to, began_ms: self.clock.now_ms() }.encode();
        // Without an id the client does not wait for the result, but it gets an error if the publish fails.
        let reply = match (reply_to.id, reply_to.post) {
            (None, None) => Reply::OnFailure(self.me, ticket),
            _ => Reply::Ticket(self.me, ticket),
        };
        self.node.broker.publish(Publish { retention, author, room, ts_ms: unix_ms(), payload, key }, reply);
    }

    /// The broker's result of a publish.
    pub(super) fn on_published(&mut self, PublishDone { ticket, room, result }: PublishDone) {
        let PublishTicket { reply_to, began_ms } = PublishTicket::decode(ticket);
        if self.outgoing.sessions.get_open(reply_to.session).is_none() {
            return;
        }
        match result {
            Ok(published) => {
                let ms = self.clock.now_ms().wrapping_sub(began_ms);
                self.node.metrics.publish_seconds.observe(f64::from(ms) / 1000.0);
                self.node.metrics.backplane_publish_seconds.observe(f64::from(ms) / 1000.0);
                let (id, room, cursor) = (reply_to.id, room.as_str(), published.cursor);
                self.reply(reply_to, &Event::Published { id, room, cursor });
            }
            Err(why) => self.refuse(reply_to, Some(room.as_str()), why.into()),
        }
    }
}
