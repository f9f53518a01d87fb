//! The first half of a join: limits are checked, and the session becomes an occupant of the room (joining, later a
//! member) and enters the room's presence. The room's first occupant, a session or a poll, makes the shard subscribe.
//! `admit` is the second half. And leaving rooms: called by everything that ends a membership, a session or a poll.

use super::{
    SessionRef, Shard, State,
    catch_up::Retry,
    reply_to::ReplyTo,
    room::{Join, RoomEntry, RoomRef},
    rooms::{Linger, Reached},
};
use crate::{
    policy::class::Class,
    protocol::{
        command::JoinOptions,
        error::{ErrorCode, Refusal},
        event::Event,
    },
    session::Stage,
};
use fanfare_broker::{BrokerError, Cursor, PresenceUpdate, Room};
use std::{borrow::Cow, rc::Rc};

impl Shard {
    /// Joins a room of the URL. `options` is `Err` if the URL's parameters are invalid; the join is then refused.
    pub(crate) fn join_by_url(&self, session: SessionRef, room: &str, options: Result<JoinOptions, Refusal>) {
        let state = &mut *self.state.borrow_mut();
        let reply_to = ReplyTo::without_id(session);
        match (Room::parse(room), options) {
            (Ok(room), Ok(options)) => state.join(reply_to, &room, options),
            (Err(why), _) => state.refuse(reply_to, Some(room), why.into()),
            (_, Err(refusal)) => state.refuse(reply_to, Some(room), refusal),
        }
    }

    /// Subscribes this shard to a room. Retries until it succeeds or the room is gone, then admits the waiting joins.
    async fn follow(self: Rc<Self>, room: RoomRef) {
        let mut retry = Retry::new();
        loop {
            let known = self.room(room, |entry| (entry.name.clone(), entry.class.history));
            let Some((name, retention)) = known else { return };
            match self.node.broker.subscribe(self.me, &name, retention).await {
                Ok(head) => return self.state.borrow_mut().on_subscribed(room, head),
                // While the backplane is away joins wait. If it refuses, nobody knows for how long.
                Err(why) => {
                    tracing::debug!(room = %name, %why, "cannot subscribe yet");
                    if why != BrokerError::Unavailable {
                        self.state.borrow_mut().refuse_waiting(room, &why);
                    }
                }
            }
            retry.wait().await;
        }
    }

    /// Calls `read` on the room; `None` if the room was removed.
    pub(super) fn room<T>(&self, room: RoomRef, read: impl FnOnce(&RoomEntry) -> T) -> Option<T> {
        self.state.borrow_mut().rooms.resolve(room).map(|entry| read(entry))
    }
}

impl State {
    /// Begins a join that the session's rights permit.
    pub(super) fn join(&mut self, reply_to: ReplyTo, room: &Room, options: JoinOptions) {
        let join = match self.enter(reply_to, room, options) {
            Ok(join) => join,
            Err(refusal) => return self.refuse(reply_to, Some(room.as_str()), refusal),
        };
        let Some(entry) = self.rooms.resolve(join.room) else { return };
        if !entry.feed.is_subscribing() {
            return self.admit(join);
        }
        if join.options.wants_presence
            && let Err(why) = self.node.broker.availability(room)
        {
            return self.abandon(&join, why.into());
        }
        // Only the session's latest join of the room waits; an earlier one is answered now.
        let earlier = entry.waiting.insert(join.session().index, join);
        if let Some(earlier) = earlier {
            self.answer_superseded(&earlier);
        }
    }

    /// Makes the session an occupant of the room. A member that joins again stays a member, with its former options until
    /// the new join is complete.
    fn enter(&mut self, reply_to: ReplyTo, name: &Room, mut options: JoinOptions) -> Result<Join, Refusal> {
        let session = reply_to.session;
        let gone = || Refusal::new(ErrorCode::Internal, "the session is gone");
        // First what may be refused, before anything changes.
        let found = self.rooms.find(name.as_str());
        let conn = self.outgoing.sessions.get_open(session).ok_or_else(gone)?;
        let present = found.and_then(|index| conn.session.membership(index));
        if present.is_none() {
            conn.session.may_enter(&self.node.limits)?;
        }
        let class = self.class(name);
        if options.wants_presence && !class.presence {
            return Err(Refusal::presence_off());
        }
        // Nothing is refused from here on, since the session is open and the room exists: both are updated.
        let room = self.followed_room(name, class);
        let conn = self.outgoing.sessions.get_open(session).ok_or_else(gone)?;
        let number = conn.session.begin_join(room.index);
        // A client that has named a cursor and has had no `joined` since then still lacks the messages after it.
        options.since = options.since.or(conn.since(room.index));
        if let Some(since) = options.since {
            conn.set_since(room.index, since);
        }
        let (id, user) = (conn.session.id, conn.session.user().cloned());
        let entry = self.rooms.resolve(room).ok_or_else(|| Refusal::new(ErrorCode::Internal, "the room is gone"))?;
        if present.is_none() {
            entry.occupants += 1;
            self.node.metrics.members.inc();
            let enter = PresenceUpdate::Enter { session: id, user, info: None, announce: class.presence };
            // The call itself queues the update; the result is not needed, because the broker retries.
            drop(self.node.broker.update_presence(name, enter));
        }
        entry.release_presence(session.index);
        if options.wants_presence {
            entry.members.pause_presence(session.index);
            entry.hold_presence(session.index);
        }
        Ok(Join { reply_to, room, number, options })
    }

    /// The room's class. A room that this shard follows stores it, so that commands do not match the name against the
    /// configured patterns.
    pub(super) fn class(&self, name: &Room) -> Class {
        let followed = self.rooms.find(name.as_str()).and_then(|index| self.rooms.get(index));
        followed.map_or_else(|| self.node.classes.of(name.as_str()), |entry| entry.class)
    }

    /// The room. If this shard does not follow it yet, it begins to. The caller adds an occupant.
    pub(super) fn followed_room(&mut self, name: &Room, class: Class) -> RoomRef {
        if let Some(index) = self.rooms.find(name.as_str())
            && let Some(entry) = self.rooms.get(index)
        {
            return entry.at(index);
        }
        let room = self.rooms.insert(name, class, self.clock.now_ms());
        self.node.metrics.rooms.inc();
        self.spawn(|shard| shard.follow(room));
        room
    }

    /// The broker has confirmed the subscription: it delivers every message after `head`.
    fn on_subscribed(&mut self, room: RoomRef, head: Option<Cursor>) {
        let Some(entry) = self.rooms.resolve(room) else { return };
        let hole = entry.feed.on_subscribed(head);
        let waiting = std::mem::take(&mut entry.waiting);
        entry.wake_polls();
        if let Some(since) = hole {
            self.start_catch_up(room, since);
        }
        for join in waiting.into_values() {
            self.admit(join);
        }
    }

    /// Gives up the joins that wait for the subscription: all of them, or those that would need more than that.
    pub(super) fn refuse_waiting(&mut self, room: RoomRef, why: &BrokerError) {
        let Some(entry) = self.rooms.resolve(room) else { return };
        entry.refusal = why.clone();
        let is_refused = |join: &Join| *why != BrokerError::Unavailable || join.options.wants_presence;
        let sessions = entry.waiting.iter().filter(|(_, join)| is_refused(join)).map(|(session, _)| *session);
        let sessions: Vec<u32> = sessions.collect();
        let refused: Vec<Join> = sessions.iter().filter_map(|session| entry.waiting.remove(session)).collect();
        for join in refused {
            self.abandon(&join, why.clone().into());
        }
    }

    /// Answers a join that a later join or leave of the room has replaced, if the client waits for a reply. The client
    /// has done nothing wrong, so this is not counted as an error of its session.
    pub(super) fn answer_superseded(&mut self, join: &Join) {
        let Some(name) = self.rooms.resolve(join.room).map(|entry| entry.name.clone()) else { return };
        let ReplyTo { session, id, post } = join.reply_to;
        if (id.is_none() && post.is_none()) || self.outgoing.sessions.get_open(session).is_none() {
            return;
        }
        let overtaken = "a later join or leave of this room has overtaken this one";
        let refusal = Refusal::new(ErrorCode::NotJoined, overtaken);
        self.reply(join.reply_to, &Event::refusal(id, Some(Cow::Borrowed(name.as_str())), &refusal));
    }

    /// Ends a join with an error, and takes the session out of the room. A join that was left or replaced is answered as
    /// such.
    pub(super) fn abandon(&mut self, join: &Join, refusal: Refusal) {
        let session = join.session();
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        if !conn.session.is_joining(join.room.index, join.number) {
            return self.answer_superseded(join);
        }
        let Some(membership) = conn.session.leave(join.room.index) else { return };
        let has_joined = membership.stage.is_member() || conn.reached(join.room.index).is_some();
        let Some(name) = self.rooms.get(join.room.index).map(|entry| entry.name.clone()) else { return };
        self.vacate(session, join.room.index, membership.stage);
        self.refuse(join.reply_to, Some(name.as_str()), refusal);
        if has_joined && self.outgoing.sessions.get_open(session).is_some() {
            // The client has had a `joined`; tell it that it is no member any more.
            self.send(session.index, &Event::Left { id: None, room: name.as_str(), reason: None });
        }
    }

    // --- leaving ---

    /// Takes a session out of one room; `false` if it was not in it.
    pub(super) fn leave(&mut self, session: SessionRef, room: &str) -> bool {
        let Some(index) = self.rooms.find(room) else { return false };
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return false };
        let Some(membership) = conn.session.leave(index) else { return false };
        let waiting = self.rooms.get_mut(index).and_then(|entry| entry.waiting.remove(&session.index));
        self.vacate(session, index, membership.stage);
        if let Some(join) = waiting {
            self.answer_superseded(&join);
        }
        true
    }

    /// Takes a session that ends out of all its rooms.
    pub(super) fn leave_all(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        for membership in conn.session.take_memberships() {
            self.vacate(session, membership.room, membership.stage);
        }
    }

    /// Takes a session out of a room that is no longer in the session's own list; `stage` is the stage of the
    /// membership that ended.
    pub(super) fn vacate(&mut self, session: SessionRef, room: u32, stage: Stage) {
        if stage.is_member() {
            // A browser that reconnects names the room again in its URL, and resumes from this cursor.
            let cursor = self.rooms.get(room).and_then(RoomEntry::cursor);
            self.record_reached(session.index, Reached { room, cursor });
        }
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        let Some(entry) = self.rooms.get_mut(room) else { return };
        conn.forget_join(room);
        if stage.is_member() {
            entry.members.remove(session.index, conn.shape);
        }
        entry.waiting.remove(&session.index);
        entry.release_presence(session.index);
        let leave = PresenceUpdate::Leave { session: conn.session.id, announce: entry.class.presence };
        drop(self.node.broker.update_presence(&entry.name, leave));
        self.node.metrics.members.dec();
        self.drop_occupant(room, Linger::Briefly);
    }

    /// Removes one occupant from a room. After the last one the room lingers: it is followed for a while longer.
    pub(super) fn drop_occupant(&mut self, room: u32, linger: Linger) {
        self.wake_timers();
        self.rooms.vacate(room, linger, self.clock.now_ms());
    }

    /// Stops following the rooms whose linger time is over.
    pub(super) fn unfollow_expired(&mut self) {
        let now_ms = self.clock.now_ms();
        while let Some(name) = self.rooms.take_expired(now_ms) {
            self.node.broker.unsubscribe(self.me, &name);
            self.node.metrics.rooms.dec();
        }
    }
}
