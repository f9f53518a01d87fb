//! The rooms that one shard follows: the table, and how long a room is followed after its last occupant has gone. Data;
//! `State` subscribes and unsubscribes.

use super::{
    clock::is_past,
    conn::Conn,
    room::{Ring, RoomEntry, RoomRef},
};
use crate::{policy::class::Class, protocol::native};
use fanfare_broker::{Cursor, Epoch, Publication, Room};
use slab::Slab;
use std::collections::{HashMap, VecDeque};

/// Payload bytes of the recent messages of all rooms of a shard.
const RING_BYTES_MAX: usize = 64 << 20;

/// Rooms for which a shard without rooms keeps its tables.
const ENTRIES_SPARE: usize = 1024;

/// How long a room without occupants is followed, by [`Linger`]. 2 s: a client that reconnects, or flaps, costs no
/// subscription. 40 s: polls come back after 36 s at the latest, and are then answered from what this shard knows.
const LINGER_MS: [u32; 2] = [2_000, 40_000];
/// Rooms without occupants that one shard follows for polls to come. Beyond this number a room lingers only as briefly
/// as one that a member left.
const LINGERING_MAX: usize = 16_384;
/// Rooms without occupants, beyond which polls may not name new ones.
const EMPTY_MAX: usize = 65_536;

/// How soon a room's next occupant is expected.
#[derive(Debug, Clone, Copy)]
pub(super) enum Linger {
    /// A session left.
    Briefly,
    /// A poll was answered.
    UntilNextPoll,
}

/// A room, and the cursor that a client has reached in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    /// The room's index.
    pub(super) room: u32,
    /// `None` in a room without history.
    pub(super) cursor: Option<Cursor>,
}

/// All rooms of a shard.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    entries: Slab<RoomEntry>,
    by_name: HashMap<Room, u32>,
    generations: u32,
    ring_bytes: usize,
    /// Rooms without occupants by [`Linger`], each with the time when it may be let go, in the order of the times.
    lingering: [VecDeque<(u32, RoomRef)>; 2],
    /// The list of rooms with a batch. Empty between two passes; kept so that each pass reuses its memory.
    pub(super) spare_indices: Vec<u32>,
}

impl Rooms {
    /// The room's index.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, index: u32) -> Option<&RoomEntry> {
        self.entries.get(index as usize)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut RoomEntry> {
        self.entries.get_mut(index as usize)
    }

    /// The room that this reference was made for; `None` if it was removed, even if another room has its index now.
    pub(super) fn resolve(&mut self, room: RoomRef) -> Option<&mut RoomEntry> {
        self.get_mut(room.index).filter(|entry| entry.generation == room.generation)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &RoomEntry> {
        self.all_with_refs().map(|(_, entry)| entry)
    }

    pub(super) fn all_with_refs(&self) -> impl Iterator<Item = (RoomRef, &RoomEntry)> {
        self.entries.iter().map(|(index, entry)| (entry.at(index as u32), entry))
    }

    /// Adds a room that is not in the table. The caller adds an occupant.
    pub(super) fn insert(&mut self, name: &Room, class: Class, now_ms: u32) -> RoomRef {
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        let index = self.entries.insert(RoomEntry::new(name.clone(), class, generation, now_ms)) as u32;
        self.by_name.insert(name.clone(), index);
        RoomRef { index, generation }
    }

    fn remove(&mut self, index: u32) -> Option<Room> {
        let entry = self.entries.try_remove(index as usize)?;
        self.ring_bytes -= entry.ring.bytes;
        self.by_name.remove(&entry.name);
        if self.entries.is_empty() && self.entries.capacity() > ENTRIES_SPARE {
            // A burst of rooms leaves no large tables behind.
            (self.entries, self.by_name) = (Slab::new(), HashMap::new());
        }
        Some(entry.name)
    }

    /// Keeps a delivered message for clients that resume. If the shard's budget is exceeded, the room's ring is
    /// emptied, and its clients resume from the broker's history.
    pub(super) fn remember(&mut self, index: u32, publication: Publication) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        self.ring_bytes -= entry.ring.bytes;
        entry.ring.push(publication);
        if self.ring_bytes + entry.ring.bytes > RING_BYTES_MAX {
            entry.ring = Ring::default();
        }
        self.ring_bytes += entry.ring.bytes;
    }

    // --- lingering ---

    /// Whether polls may have this shard follow one more room.
    pub(super) fn may_watch(&self) -> bool {
        self.lingering.iter().map(VecDeque::len).sum::<usize>() < EMPTY_MAX
    }

    pub(super) fn has_lingering(&self) -> bool {
        self.lingering.iter().any(|queue| !queue.is_empty())
    }

    /// Removes one occupant from a room. A room without occupants is followed for a while longer.
    pub(super) fn vacate(&mut self, index: u32, linger: Linger, now_ms: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        entry.occupants -= 1;
        let linger = if self.lingering[linger as usize].len() < LINGERING_MAX { linger } else { Linger::Briefly };
        let until_ms = now_ms.wrapping_add(LINGER_MS[linger as usize]);
        // A time further ahead than any linger is an old one: the clock has wrapped since.
        let has_wrapped = !is_past(entry.wanted_until_ms, now_ms.wrapping_add(LINGER_MS[1]));
        if has_wrapped || is_past(entry.wanted_until_ms, until_ms) {
            entry.wanted_until_ms = until_ms;
        }
        if entry.occupants == 0 && !std::mem::replace(&mut entry.is_lingering, true) {
            let room = entry.at(index);
            self.lingering[linger as usize].push_back((until_ms, room));
        }
    }

    /// Removes one room that has no occupants and whose linger time is over, and returns its name. Called until it
    /// returns `None`.
    pub(super) fn take_expired(&mut self, now_ms: u32) -> Option<Room> {
        for linger in 0..LINGER_MS.len() {
            while self.lingering[linger].front().is_some_and(|(due_ms, _)| is_past(*due_ms, now_ms)) {
                let Some((_, room)) = self.lingering[linger].pop_front() else { break };
                let Some(entry) = self.resolve(room) else { continue };
                entry.is_lingering = false;
                if entry.occupants > 0 {
                    continue; // its last occupant files it again
                }
                if is_past(entry.wanted_until_ms, now_ms) {
                    return self.remove(room.index);
                }
                // It had an occupant in the meantime. It waits among the polled rooms, where a late entry delays no
                // other.
                entry.is_lingering = true;
                let due = (entry.wanted_until_ms, room);
                self.lingering[Linger::UntilNextPoll as usize].push_back(due);
            }
        }
        None
    }

    // --- cursors of a stream's rooms ---

    /// What the client of a stream has received of each room in its URL: cursors in the rooms' order, joined by `~`;
    /// `-` for a room without history, nothing for a room that the client has not been let into. A member has received
    /// what all members have, except in the room `ahead`, for which the client's own cursor is given.
    pub(super) fn cursors(&self, conn: &Conn, ahead: Option<Reached>) -> Vec<u8> {
        let mut text = Vec::new();
        for (i, room) in conn.stream.iter().flat_map(|stream| &stream.rooms).enumerate() {
            if i > 0 {
                text.push(b'~');
            }
            if !room.is_numbered {
                text.push(b'-');
                continue;
            }
            let index = self.find(room.name.as_str());
            let is_member = |index| conn.session.membership(index).is_some_and(|m| m.stage.is_member());
            let cursor = match (index, ahead) {
                (Some(index), Some(ahead)) if index == ahead.room => ahead.cursor,
                (Some(index), _) if is_member(index) => self.get(index).and_then(RoomEntry::cursor),
                _ => room.reached,
            };
            match cursor {
                // The epoch is of another length, so its text is not known. Zeros stand for it: no room has that epoch.
                Some(cursor) if cursor.epoch == Epoch::FOREIGN => text.extend_from_slice(b"00000000.0"),
                Some(cursor) => text.extend_from_slice(&native::cursor_text(cursor)),
                None => {}
            }
        }
        text
    }
}
