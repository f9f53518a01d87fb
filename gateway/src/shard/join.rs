//! The first half of a join: the session is permitted, counted as an occupant of the room, and entered into the room's
//! presence; the first session or poll of a room has the shard subscribe. `admit` is the second half. And the way out of
//! rooms, called by everything that ends a membership, a session or a poll.

use super::{
    SessionRef, Shard, State,
    catch_up::Retry,
    reply_to::ReplyTo,
    room::{Join, PendingPresence, RoomEntry, RoomRef},
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
use fanfare_broker::{Cursor, PresenceUpdate, Room};
use std::{borrow::Cow, rc::Rc};

impl Shard {
    /// Joins a room of the URL; `options` are refused if the URL's are wrong.
    pub(crate) fn join_by_url(&self, session: SessionRef, room: &str, options: Result<JoinOptions, Refusal>) {
        let state = &mut *self.state.borrow_mut();
        let reply_to = ReplyTo::without_id(session);
        match (Room::parse(room), options) {
            (Ok(room), Ok(options)) => state.join(reply_to, &room, options),
            (Err(why), _) => state.refuse(reply_to, Some(room), why.into()),
            (_, Err(refusal)) => state.refuse(reply_to, Some(room), refusal),
        }
    }

    /// Subscribes a room, however long that takes, then lets the waiting joins in.
    async fn follow(self: Rc<Self>, room: RoomRef) {
        let mut retry = Retry::new();
        loop {
            let known = self.room(room, |entry| (entry.name.clone(), entry.class.history));
            let Some((name, retention)) = known else { return };
            match self.node.broker.subscribe(self.me, &name, retention).await {
                Ok(head) => return self.state.borrow_mut().on_subscribed(room, head),
                Err(why) => tracing::debug!(room = %name, %why, "cannot subscribe yet"),
            }
            retry.wait().await;
        }
    }

    /// Reads something of a room, if the room is still there.
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
        // A session waits with its last join only: an earlier one is answered now.
        let earlier = entry.waiting.iter().position(|earlier| earlier.session() == join.session());
        let earlier = earlier.map(|index| entry.waiting.swap_remove(index));
        entry.waiting.push(join);
        if let Some(earlier) = earlier {
            self.answer_superseded(&earlier);
        }
    }

    /// Makes the session an occupant of the room. A member that joins again is no member until the new join is
    /// complete; the join goes on from the cursor that it has reached.
    fn enter(&mut self, reply_to: ReplyTo, name: &Room, options: JoinOptions) -> Result<Join, Refusal> {
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
        // Then the room and the session each learn of the other.
        let room = self.followed_room(name, class);
        let conn = self.outgoing.sessions.get_open(session).ok_or_else(gone)?;
        let number = conn.session.begin_join(room.index);
        let (id, user, shape) = (conn.session.id, conn.session.user().cloned(), conn.shape);
        let entry = self.rooms.resolve(room).ok_or_else(|| Refusal::new(ErrorCode::Internal, "the room is gone"))?;
        let mut from = None;
        match present {
            Some(membership) if membership.stage == Stage::Member => {
                entry.members.remove(session.index, shape);
                from = entry.cursor();
            }
            Some(_) => {}
            None => {
                entry.occupants += 1;
                self.node.metrics.members.inc();
                let enter = PresenceUpdate::Enter { session: id, user, info: None, announce: class.presence };
                drop(self.node.broker.update_presence(name, enter));
            }
        }
        entry.pending_presence.retain(|pending| pending.session != session.index);
        if options.wants_presence {
            entry.pending_presence.push(PendingPresence { session: session.index, shape, events: Vec::new() });
        }
        if from.is_some() {
            // The ids of other rooms' events say where the client is in this room, also while it is no member.
            self.record_reached(session.index, Reached { room: room.index, cursor: from });
        }
        Ok(Join { reply_to, room, number, options, from })
    }

    /// The room's class. It is kept with a room that this shard follows, so that no pattern is matched per command.
    pub(super) fn class(&self, name: &Room) -> Class {
        let followed = self.rooms.find(name.as_str()).and_then(|index| self.rooms.get(index));
        followed.map_or_else(|| self.node.classes.of(name.as_str()), |entry| entry.class)
    }

    /// The room, which this shard begins to follow if it does not follow it already. The caller adds an occupant.
    pub(super) fn followed_room(&mut self, name: &Room, class: Class) -> RoomRef {
        if let Some(index) = self.rooms.find(name.as_str())
            && let Some(entry) = self.rooms.get(index)
        {
            return RoomRef { index, generation: entry.generation };
        }
        let room = self.rooms.insert(name, class, self.clock.now_ms());
        self.node.metrics.rooms.inc();
        self.spawn(|shard| shard.follow(room));
        room
    }

    /// The broker delivers the room's messages from now on, all that come after `head`.
    fn on_subscribed(&mut self, room: RoomRef, head: Option<Cursor>) {
        let Some(entry) = self.rooms.resolve(room) else { return };
        let hole = entry.feed.on_subscribed(head);
        let waiting = std::mem::take(&mut entry.waiting);
        entry.wake_polls();
        if let Some(since) = hole {
            self.start_catch_up(room, since);
        }
        for join in waiting {
            self.admit(join);
        }
    }

    /// Answers a join that a later join, or a leave, of the room has overtaken, if the client waits for a reply. The
    /// client has done nothing wrong, so this is not counted as an error of its session.
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

    /// Gives up a join that is still wanted: the session leaves the room, and the client gets the reason.
    pub(super) fn abandon(&mut self, join: &Join, refusal: Refusal) {
        let session = join.session();
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        if !conn.session.is_joining(join.room.index, join.number) {
            return;
        }
        conn.session.leave(join.room.index);
        let Some(name) = self.rooms.get(join.room.index).map(|entry| entry.name.clone()) else { return };
        self.vacate(session, join.room.index, Stage::Joining);
        self.refuse(join.reply_to, Some(name.as_str()), refusal);
        if join.from.is_some() && self.outgoing.sessions.get_open(session).is_some() {
            // It was a member before this join, and the client still thinks so.
            self.send(session.index, &Event::Left { id: None, room: name.as_str(), reason: None });
        }
    }

    // --- leaving ---

    /// Takes a session out of one room; `false` if it was not in it.
    pub(super) fn leave(&mut self, session: SessionRef, room: &str) -> bool {
        let Some(index) = self.rooms.find(room) else { return false };
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return false };
        let Some(membership) = conn.session.leave(index) else { return false };
        self.vacate(session, index, membership.stage);
        true
    }

    /// Takes a session that ends out of all its rooms.
    pub(super) fn leave_all(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        for membership in conn.session.take_memberships() {
            self.vacate(session, membership.room, membership.stage);
        }
    }

    /// Takes a session out of a room that it has struck off its own list already; `stage` is what it was there.
    pub(super) fn vacate(&mut self, session: SessionRef, room: u32, stage: Stage) {
        if stage == Stage::Member {
            // A browser that reconnects names the room again, and goes on from here.
            let cursor = self.rooms.get(room).and_then(RoomEntry::cursor);
            self.record_reached(session.index, Reached { room, cursor });
        }
        let Some(conn) = self.outgoing.sessions.get(session) else { return };
        let Some(entry) = self.rooms.get_mut(room) else { return };
        if stage == Stage::Member {
            entry.members.remove(session.index, conn.shape);
        }
        entry.pending_presence.retain(|pending| pending.session != session.index);
        let leave = PresenceUpdate::Leave { session: conn.session.id, announce: entry.class.presence };
        drop(self.node.broker.update_presence(&entry.name, leave));
        self.node.metrics.members.dec();
        self.drop_occupant(room, Linger::Briefly);
    }

    /// Takes one occupant off a room, which is followed for a while longer if that was the last one.
    pub(super) fn drop_occupant(&mut self, room: u32, linger: Linger) {
        self.wake_timers();
        self.rooms.vacate(room, linger, self.clock.now_ms());
    }

    /// Stops following the rooms that have had no occupant for long enough.
    pub(super) fn unfollow_expired(&mut self) {
        let now_ms = self.clock.now_ms();
        while let Some(name) = self.rooms.take_expired(now_ms) {
            self.node.broker.unsubscribe(self.me, &name);
            self.node.metrics.rooms.dec();
        }
    }
}
