//! The rooms that one shard's sessions are in: names, feeds, members, and the last few messages. Plain data; what is
//! done with it stands in `join.rs` (coming and going) and `fanout.rs` (delivering).

use super::feed::Feed;
use crate::{
    policy::class::Class,
    protocol::{
        FrameShape,
        command::{EchoWish, JoinOptions},
    },
    session::Frames,
};
use bytes::BytesMut;
use fanfare_broker::{Cursor, Publication, Room, SessionId};
use slab::Slab;
use smallvec::SmallVec;
use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};
use tokio::sync::Notify;

/// Messages of an active room that each shard keeps, for resumes that need not ask the broker.
const RING_MAX: usize = 64;
/// Their payload bytes, for all rooms of a shard together.
const RING_BYTES_MAX: usize = 64 << 20;

/// Rooms for which an empty shard keeps its tables.
const ENTRIES_SPARE: usize = 1024;

/// One room on one shard.
#[derive(Debug)]
pub(super) struct RoomEntry {
    pub(super) name: Room,
    pub(super) class: Class,
    /// Tells this entry from an earlier one of the same key.
    pub(super) generation: u32,
    pub(super) feed: Feed,
    /// Members that get everything, by the shape of their frames: the session's key alone, so that the fan-out reads four
    /// bytes per member.
    pub(super) plain: [Vec<u32>; FrameShape::COUNT],
    /// Members that see who comes and goes, that want some messages kept away, or whose events have ids of their own.
    pub(super) custom: Vec<CustomMember>,
    /// Sessions that are in the room or coming in, and polls that look at it.
    pub(super) occupants: u32,
    /// Until when it is followed at least; means something only while nobody is in it.
    pub(super) wanted_until_ms: u32,
    /// It is in a queue of rooms to be let go.
    pub(super) is_lingering: bool,
    /// When it was first followed.
    pub(super) made_ms: u32,
    /// Polls that wait for its next message. Most rooms have none.
    pub(super) parked: Option<Box<Slab<Rc<Notify>>>>,
    /// Sessions that have asked who is here and are not members yet.
    pub(super) pending_presence: Vec<PendingPresence>,
    /// Joins that wait for the subscription.
    pub(super) waiting: Vec<super::join::Join>,
    ring: VecDeque<Publication>,
    pub(super) batch: Option<Box<Batch>>,
}

/// A member that does not simply get everything.
#[derive(Debug)]
pub(super) struct CustomMember {
    pub(super) session: u32,
    pub(super) shape: FrameShape,
    /// Its events' ids speak of other rooms too: its frames are made for it alone.
    pub(super) has_own_ids: bool,
    /// Presence events after this version; `None`: none.
    pub(super) presence_after: Option<u64>,
    /// Whose messages stay away.
    pub(super) excluded: SmallVec<[SessionId; 2]>,
}

/// A session that is coming in and wishes to see who comes and goes: what happens between its listing and its becoming
/// a member waits here.
#[derive(Debug)]
pub(super) struct PendingPresence {
    pub(super) session: u32,
    pub(super) shape: FrameShape,
    /// Presence events by version, at most [`PENDING_PRESENCE_MAX`].
    pub(super) events: Vec<(u64, Frames)>,
}

/// Presence events that wait for one session; a listing is never older than the few seconds in which so many come.
pub(super) const PENDING_PRESENCE_MAX: usize = 4096;

/// What a room's members get at the end of the tick: their frames, back to back, encoded once for each shape that they
/// have.
#[derive(Debug)]
pub(super) struct Batch {
    /// Where members stood before it.
    pub(super) from: Option<Cursor>,
    /// Which shapes are wanted.
    pub(super) wanted: [bool; FrameShape::COUNT],
    pub(super) bytes: [BytesMut; FrameShape::COUNT],
    pub(super) count: u32,
    /// Where each frame ends and whose it is; kept only for special members.
    pub(super) marks: Vec<Mark>,
}

/// One frame of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Where it ends in each shape.
    pub(super) ends: [usize; FrameShape::COUNT],
    /// Where an event's id begins.
    pub(super) id_at: usize,
    /// The session that published it; `None`: a back end, or a gap. Members that exclude it do not get the frame.
    pub(super) author: Option<SessionId>,
    /// Where members stand after it.
    pub(super) at: Option<Cursor>,
}

/// Whose messages a join wants kept away.
pub(super) fn excluded(own: SessionId, options: &JoinOptions) -> SmallVec<[SessionId; 2]> {
    let mut excluded = SmallVec::from_slice(&options.exclude);
    if options.echo == EchoWish::No {
        excluded.push(own);
    }
    excluded
}

impl Mark {
    /// Whether a member that excludes these sessions' messages does not get the frame.
    pub(super) fn is_excluded(&self, excluded: &[SessionId]) -> bool {
        self.author.is_some_and(|author| excluded.contains(&author))
    }
}

impl Batch {
    /// Empty, for those who are members of `entry` now.
    fn new(entry: &RoomEntry, from: Option<Cursor>) -> Self {
        let wanted = |shape: FrameShape| {
            !entry.plain[shape as usize].is_empty() || entry.custom.iter().any(|custom| custom.shape == shape)
        };
        let bytes = [BytesMut::new(), BytesMut::new(), BytesMut::new()];
        Self { from, wanted: FrameShape::ALL.map(wanted), bytes, count: 0, marks: Vec::new() }
    }
}

impl RoomEntry {
    pub(super) fn members(&self) -> usize {
        self.plain.iter().map(Vec::len).sum::<usize>() + self.custom.len()
    }

    pub(super) fn add_member(&mut self, member: CustomMember) {
        if member.presence_after.is_none() && member.excluded.is_empty() && !member.has_own_ids {
            self.plain[member.shape as usize].push(member.session);
        } else {
            self.custom.push(member);
        }
    }

    /// Takes a session out of the member lists.
    pub(super) fn remove_member(&mut self, session: u32, shape: FrameShape) {
        let plain = &mut self.plain[shape as usize];
        if let Some(place) = plain.iter().position(|s| *s == session) {
            plain.swap_remove(place);
        } else {
            self.custom.retain(|s| s.session != session);
        }
    }

    /// The batch of this pass, begun by whoever has the first frame for it; `from` is where members stood before that.
    pub(super) fn batch(&mut self, from: Option<Cursor>) -> &mut Batch {
        let batch = self.batch.take().unwrap_or_else(|| Box::new(Batch::new(self, from)));
        self.batch.insert(batch)
    }

    /// Where its members stand: what was handed to them, not what waits in this pass's batch.
    pub(super) fn place(&self) -> Option<Cursor> {
        match &self.batch {
            Some(batch) => batch.from,
            None => self.feed.position().map(fanfare_broker::Position::cursor),
        }
    }

    /// Wakes the polls that wait for something new.
    pub(super) fn wake_parked(&self) {
        if let Some(parked) = &self.parked {
            parked.iter().for_each(|(_, poll)| poll.notify_one());
        }
    }

    /// When the last kept message was published, in milliseconds since 1970.
    pub(super) fn last_ts_ms(&self) -> Option<u64> {
        self.ring.back().map(|publication| publication.ts_ms)
    }

    /// The kept messages after `since`, if they reach back that far.
    pub(super) fn ring_after(&self, since: Cursor) -> Option<impl Iterator<Item = &Publication>> {
        let (first, last) = (self.ring.front()?.cursor?, self.ring.back()?.cursor?);
        // After a gap the ring ends before the feed does: it knows nothing of what came to be missing.
        if self.feed.position()?.cursor() != last {
            return None;
        }
        // The offset is a client's: any number.
        let skip = since.offset.0.checked_add(1)?.checked_sub(first.offset.0)?;
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
    pub(super) fn find_or_make(&mut self, name: &Room, now_ms: u32, class: impl FnOnce() -> Class) -> (u32, bool) {
        if let Some(key) = self.find(name.as_str()) {
            return (key, false);
        }
        self.generations = self.generations.wrapping_add(1);
        let key = self.entries.insert(RoomEntry {
            name: name.clone(),
            class: class(),
            generation: self.generations,
            feed: Feed::new(),
            plain: Default::default(),
            custom: Vec::new(),
            occupants: 0,
            wanted_until_ms: now_ms,
            is_lingering: false,
            made_ms: now_ms,
            parked: None,
            pending_presence: Vec::new(),
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

    pub(super) fn all(&self) -> impl Iterator<Item = &RoomEntry> {
        self.entries.iter().map(|(_, entry)| entry)
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
        if self.entries.is_empty() && self.entries.capacity() > ENTRIES_SPARE {
            // A storm of rooms leaves no large tables behind.
            (self.entries, self.by_name) = (Slab::new(), HashMap::new());
        }
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
