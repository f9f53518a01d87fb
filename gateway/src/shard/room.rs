//! One room on one shard: feed, members, the last few messages, and the polls and joins that wait for something. Data;
//! `admit` adds members, `join` removes them, `fanout` delivers.

use super::{batch::Batch, conn::SessionRef, feed::Feed, member_list::HeldEvents, members::Members, reply_to::ReplyTo};
use crate::{policy::class::Class, protocol::command::JoinOptions};
use fanfare_broker::{BrokerError, Cursor, Position, Publication, Room, SessionId};
use slab::Slab;
use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};
use tokio::sync::Notify;

/// Messages that are kept of one room.
const RING_MESSAGES_MAX: usize = 64;

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
    /// Until when the room is followed if it has no occupant.
    pub(super) wanted_until_ms: u32,
    /// It is in a queue of [`Rooms`](super::rooms::Rooms) to be removed when its time is over.
    pub(super) is_lingering: bool,
    pub(super) made_ms: u32,
    /// Polls that wait for the next message. Most rooms have none.
    pub(super) parked: Option<Box<Slab<Rc<Notify>>>>,
    /// Presence events that wait for members whose list is on its way.
    pub(super) held: Option<Box<HeldEvents>>,
    /// The version of the latest presence event, or of a list before the first one; 0 while no member gets any.
    pub(super) presence_version: u64,
    /// Joins that wait for the subscription, by their sessions' indices.
    pub(super) waiting: BTreeMap<u32, Join>,
    /// What a poll gets that waits for the subscription in vain.
    pub(super) refusal: BrokerError,
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
}

impl Join {
    pub(super) fn session(&self) -> SessionRef {
        self.reply_to.session
    }

    /// The sessions whose messages the member will not get; `own` is the joining session's id.
    pub(super) fn excluded(&self, own: SessionId) -> SmallVec<[SessionId; 2]> {
        let mut excluded = SmallVec::from_slice(&self.options.exclude);
        if self.options.skips_own {
            excluded.push(own);
        }
        excluded
    }
}

impl RoomEntry {
    /// A room that is not subscribed yet and has no occupants.
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
            held: None,
            presence_version: 0,
            waiting: BTreeMap::new(),
            refusal: BrokerError::Unavailable,
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

    /// A reference to this room, which has this index in the table.
    pub(super) fn at(&self, index: u32) -> RoomRef {
        RoomRef { index, generation: self.generation }
    }

    // --- presence events ---

    /// Begins to hold presence events back for a session that is to get a list.
    pub(super) fn hold_presence(&mut self, session: u32) {
        let held = self.held.get_or_insert_default();
        if !held.holders.contains(&session) {
            held.holders.push(session);
        }
    }

    /// The session has its list, or leaves.
    pub(super) fn release_presence(&mut self, session: u32) {
        let Some(held) = &mut self.held else { return };
        held.holders.retain(|holder| *holder != session);
        held.to_list.retain(|holder| *holder != session);
        self.drop_held_events();
    }

    /// Drops the held events if they wait for no member.
    pub(super) fn drop_held_events(&mut self) {
        self.held.take_if(|held| held.holders.is_empty() && !held.is_reading);
    }

    /// Takes the version of an event that comes. `true`: events before it are missing.
    pub(super) fn misses_presence(&mut self, version: u64) -> bool {
        let before = self.presence_version;
        self.presence_version = before.max(version);
        before != 0 && version > before + 1
    }

    /// Presence events were lost: the members that were to get them need a new list. Returns whether there are any.
    pub(super) fn lose_presence(&mut self) -> bool {
        let lost: Vec<u32> = self.members.hold_presence().collect();
        lost.iter().for_each(|session| self.hold_presence(*session));
        let Some(held) = &mut self.held else { return false };
        held.to_list.extend(lost);
        true
    }

    // --- messages ---

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

/// The last few messages of one room in sequence, oldest first, for clients that resume: what a client missed is read
/// from here, if the ring reaches back far enough, and not from the broker.
#[derive(Debug, Default)]
pub(super) struct Ring {
    publications: VecDeque<Publication>,
    /// Bytes of their payloads.
    pub(super) bytes: usize,
}

impl Ring {
    /// When the newest message was published, in milliseconds since 1970.
    pub(super) fn last_ts_ms(&self) -> Option<u64> {
        self.publications.back().map(|publication| publication.ts_ms)
    }

    /// Keeps a message; one that does not follow the newest replaces them all. A message of a room without history has
    /// no cursor and is not kept.
    pub(super) fn push(&mut self, publication: Publication) {
        let Some(cursor) = publication.cursor else { return };
        let last = self.publications.back().and_then(|last| last.cursor);
        if last.is_some_and(|last| last.epoch != cursor.epoch || last.offset.next() != cursor.offset) {
            self.publications.clear();
            self.bytes = 0;
        }
        self.bytes += publication.payload.len();
        self.publications.push_back(publication);
        if self.publications.len() > RING_MESSAGES_MAX {
            self.bytes -= self.publications.pop_front().map_or(0, |oldest| oldest.payload.len());
        }
    }

    /// The messages after `since`; `None` if the ring does not reach back that far, or does not reach up to `position`,
    /// where the room's feed stands: after a gap the ring lacks messages that the feed has passed over.
    pub(super) fn after(&self, since: Cursor, position: Position) -> Option<impl Iterator<Item = &Publication>> {
        let (first, last) = (self.publications.front()?.cursor?, self.publications.back()?.cursor?);
        if position.cursor() != last || first.epoch != since.epoch {
            return None;
        }
        // `since` is the client's, so its offset may be any number.
        let skip = since.offset.0.checked_add(1)?.checked_sub(first.offset.0)?;
        Some(self.publications.iter().skip(skip as usize))
    }
}
