//! One room on one shard: feed, members, the last few messages, and the polls and joins that wait for something. Data;
//! `join` and `leave` change the members, `fanout` delivers.

use super::{batch::Batch, conn::SessionRef, feed::Feed, members::Members, reply_to::ReplyTo, ring::Ring};
use crate::{
    policy::class::Class,
    protocol::{
        FrameShape,
        command::{EchoWish, JoinOptions},
    },
    session::Frames,
};
use fanfare_broker::{Cursor, Position, Publication, Room, SessionId};
use slab::Slab;
use smallvec::SmallVec;
use std::rc::Rc;
use tokio::sync::Notify;

/// Presence events that may wait for one join. A listing is seconds old at most; so many changes do not fit into that.
const PENDING_PRESENCE_MAX: usize = 4096;

/// A room by its index in the table; the generation tells it from an earlier room of the same index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoomRef {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A room that a session of this shard is in, or that a poll watches; and for a short while after.
#[derive(Debug)]
pub(super) struct RoomEntry {
    pub(super) name: Room,
    pub(super) class: Class,
    pub(super) generation: u32,
    pub(super) feed: Feed,
    pub(super) members: Members,
    /// Sessions that are in the room or joining it, and polls that watch it.
    pub(super) occupants: u32,
    /// How long the room is followed at least, if it has no occupant.
    pub(super) wanted_until_ms: u32,
    /// It waits in [`Rooms`](super::rooms::Rooms) for its time to be let go.
    pub(super) is_lingering: bool,
    /// When it was first followed.
    pub(super) made_ms: u32,
    /// Polls that wait for the next message. Most rooms have none.
    pub(super) parked: Option<Box<Slab<Rc<Notify>>>>,
    /// Joins that asked for the member list and are not complete.
    pub(super) pending_presence: Vec<PendingPresence>,
    /// Joins that wait for the subscription.
    pub(super) waiting: Vec<Join>,
    /// The frames of the present pass.
    pub(super) batch: Option<Box<Batch>>,
    /// The last few messages.
    pub(super) ring: Ring,
}

/// A join that a session has asked for.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) reply_to: ReplyTo,
    pub(super) room: RoomRef,
    /// The session's number for this join. After a later join or a leave of the room the number is out of date, and the
    /// join is given up.
    pub(super) number: u32,
    pub(super) options: JoinOptions,
    /// The cursor of a session that was a member already: unless the new join asks for another, it goes on from there.
    pub(super) from: Option<Cursor>,
}

/// A join that will get presence events: those that happen after the member list was read and before the session is a
/// member wait here.
#[derive(Debug)]
pub(super) struct PendingPresence {
    pub(super) session: u32,
    pub(super) shape: FrameShape,
    /// Frames of presence events, with their versions.
    pub(super) events: Vec<(u64, Frames)>,
}

impl Join {
    pub(super) fn session(&self) -> SessionRef {
        self.reply_to.session
    }

    /// The sessions whose messages the member will not get; `own` is the joining session's id.
    pub(super) fn excluded(&self, own: SessionId) -> SmallVec<[SessionId; 2]> {
        let mut excluded = SmallVec::from_slice(&self.options.exclude);
        if self.options.echo == EchoWish::No {
            excluded.push(own);
        }
        excluded
    }
}

impl PendingPresence {
    pub(super) fn push(&mut self, version: u64, frames: Frames) {
        if self.events.len() < PENDING_PRESENCE_MAX {
            self.events.push((version, frames));
        }
    }
}

impl RoomEntry {
    /// A room that is not subscribed yet and has nobody in it.
    pub(super) fn new(name: Room, class: Class, generation: u32, now_ms: u32) -> Self {
        Self {
            name,
            class,
            generation,
            feed: Feed::new(),
            members: Members::default(),
            occupants: 0,
            wanted_until_ms: now_ms,
            is_lingering: false,
            made_ms: now_ms,
            parked: None,
            pending_presence: Vec::new(),
            waiting: Vec::new(),
            batch: None,
            ring: Ring::default(),
        }
    }

    /// The cursor of the room's members: the last message that was handed to them. Messages of a batch that has not
    /// been handed out yet do not count.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        match &self.batch {
            Some(batch) => batch.from,
            None => self.feed.position().map(Position::cursor),
        }
    }

    /// Wakes the polls that wait for something new.
    pub(super) fn wake_polls(&self) {
        if let Some(parked) = &self.parked {
            parked.iter().for_each(|(_, poll)| poll.notify_one());
        }
    }

    /// The kept messages after `since`, if they reach back that far.
    pub(super) fn recent_after(&self, since: Cursor) -> Option<impl Iterator<Item = &Publication>> {
        self.ring.after(since, self.feed.position()?)
    }
}
