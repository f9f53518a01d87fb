//! The rooms that one shard's sessions are in: names, feeds, members, and the last few messages. Plain data; what is
//! done with it stands in `join.rs` (coming and going) and `fanout.rs` (delivering).

use super::feed::Feed;
use crate::{
    class::Class,
    command::{EchoWish, JoinOptions, PresenceWish},
    session::{Frames, SessionId},
};
use bytes::BytesMut;
use fanfare_broker::{Cursor, Origin, Publication, Room};
use slab::Slab;
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};

/// Messages of an active room that each shard keeps, for resumes that need not ask the broker.
const RING_MAX: usize = 64;
/// Their payload bytes, for all rooms of a shard together.
const RING_BYTES_MAX: usize = 64 << 20;

/// One room on one shard.
#[derive(Debug)]
pub(super) struct RoomEntry {
    pub(super) name: Room,
    pub(super) class: Class,
    /// Tells this entry from an earlier one of the same key.
    pub(super) generation: u32,
    pub(super) feed: Feed,
    /// Members that get everything: the session's key alone, so that the fan-out reads four bytes per member.
    pub(super) plain: Vec<u32>,
    /// Members that see who comes and goes, or that want some messages kept away.
    pub(super) special: Vec<Special>,
    /// Sessions that are in the room or coming in.
    pub(super) occupants: u32,
    /// When the last one left.
    pub(super) emptied_ms: u32,
    /// Sessions that have asked who is here and are not members yet.
    pub(super) coming: Vec<Coming>,
    /// Joins that wait for the subscription.
    pub(super) waiting: Vec<super::join::Join>,
    ring: VecDeque<Publication>,
    pub(super) batch: Option<Box<Batch>>,
}

/// A member that does not simply get everything.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) session: u32,
    /// Presence events after this version; `None`: none.
    pub(super) presence_after: Option<u64>,
    /// Whose messages stay away.
    pub(super) without: SmallVec<[Origin; 2]>,
}

/// A session that is coming in and wishes to see who comes and goes: what happens between its listing and its becoming
/// a member waits here.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) session: u32,
    /// Presence events by version, at most [`COMING_MAX`].
    pub(super) events: Vec<(u64, Frames)>,
}

/// Presence events that wait for one session; a listing is never older than the few seconds in which so many come.
pub(super) const COMING_MAX: usize = 4096;

/// What a room's members get at the end of the tick: their frames, back to back, encoded once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: BytesMut,
    pub(super) count: u32,
    /// Where each frame ends and whose it is; kept only for special members.
    pub(super) marks: Vec<Mark>,
}

/// One frame of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) end: usize,
    pub(super) kind: MarkKind,
}

/// Whom a frame is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum MarkKind {
    /// Everybody who does not keep this origin away.
    Message(Origin),
    /// Everybody: gaps.
    Notice,
}

impl Special {
    /// `None` if these options make a plain member.
    pub(super) fn of(session: u32, own: SessionId, options: &JoinOptions, version: u64) -> Option<Self> {
        let mut without: SmallVec<[Origin; 2]> = options.exclude.iter().map(|id| Origin::from(*id)).collect();
        if options.echo == EchoWish::No {
            without.push(own.into());
        }
        let presence_after = (options.presence == PresenceWish::Members).then_some(version);
        (presence_after.is_some() || !without.is_empty()).then_some(Self { session, presence_after, without })
    }
}

impl RoomEntry {
    pub(super) fn members(&self) -> usize {
        self.plain.len() + self.special.len()
    }

    /// Takes a session out of the member lists.
    pub(super) fn remove_member(&mut self, session: u32) {
        if let Some(place) = self.plain.iter().position(|s| *s == session) {
            self.plain.swap_remove(place);
        } else {
            self.special.retain(|s| s.session != session);
        }
    }

    /// The kept messages after `since`, if they reach back that far.
    pub(super) fn ring_after(&self, since: Cursor) -> Option<impl Iterator<Item = &Publication>> {
        let (first, last) = (self.ring.front()?.cursor?, self.ring.back()?.cursor?);
        // After a gap the ring ends before the feed does: it knows nothing of what came to be missing.
        if self.feed.position()?.cursor() != last {
            return None;
        }
        let skip = (since.offset.0 + 1).checked_sub(first.offset.0)?;
        (first.epoch == since.epoch).then(|| self.ring.iter().skip(skip as usize))
    }

    fn ring_bytes(&self) -> usize {
        self.ring.iter().map(|p| p.payload.len()).sum()
    }
}

/// All rooms of a shard.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    entries: Slab<RoomEntry>,
    by_name: HashMap<Room, u32>,
    generations: u32,
    ring_bytes: usize,
}

/// A room that became empty: when to look again, and which.
pub(super) type RoomKey = (u32, u32);

impl Rooms {
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The room's key; `true` if the entry is new.
    pub(super) fn find_or_make(&mut self, name: &Room, class: impl FnOnce() -> Class) -> (u32, bool) {
        if let Some(key) = self.find(name.as_str()) {
            return (key, false);
        }
        self.generations = self.generations.wrapping_add(1);
        let key = self.entries.insert(RoomEntry {
            name: name.clone(),
            class: class(),
            generation: self.generations,
            feed: Feed::new(),
            plain: Vec::new(),
            special: Vec::new(),
            occupants: 0,
            emptied_ms: 0,
            coming: Vec::new(),
            waiting: Vec::new(),
            ring: VecDeque::new(),
            batch: None,
        }) as u32;
        self.by_name.insert(name.clone(), key);
        (key, true)
    }

    pub(super) fn get(&self, key: u32) -> Option<&RoomEntry> {
        self.entries.get(key as usize)
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut RoomEntry> {
        self.entries.get_mut(key as usize)
    }

    /// The entry, if it is still the one that this generation was given to.
    pub(super) fn same(&mut self, (key, generation): RoomKey) -> Option<&mut RoomEntry> {
        self.get_mut(key).filter(|entry| entry.generation == generation)
    }

    /// Forgets a room that nobody is in.
    pub(super) fn remove(&mut self, key: u32) -> Option<Room> {
        let entry = self.entries.try_remove(key as usize)?;
        self.ring_bytes -= entry.ring_bytes();
        self.by_name.remove(&entry.name);
        Some(entry.name)
    }

    /// Keeps a delivered message for resumes. Over the shard's budget the room keeps none: its resumes ask the broker.
    pub(super) fn remember(&mut self, key: u32, publication: Publication) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        let Some(cursor) = publication.cursor else { return };
        let follows = entry.ring.back().and_then(|last| last.cursor);
        if follows.is_some_and(|last| last.epoch != cursor.epoch || last.offset.next() != cursor.offset) {
            self.ring_bytes -= entry.ring_bytes();
            entry.ring.clear();
        }
        self.ring_bytes += publication.payload.len();
        entry.ring.push_back(publication);
        if entry.ring.len() > RING_MAX {
            self.ring_bytes -= entry.ring.pop_front().map_or(0, |p| p.payload.len());
        }
        if self.ring_bytes > RING_BYTES_MAX {
            self.ring_bytes -= entry.ring_bytes();
            entry.ring = VecDeque::new();
        }
    }
}
