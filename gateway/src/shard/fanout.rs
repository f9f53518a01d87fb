//! The hot path: a message is encoded once, appended to its room's batch, and at the end of the pass each member's
//! outbox gets a reference to the batch. Per member there is no lock, no clock reading, no copy and no metric look-up.
//! Only event streams of several rooms need more: each event of theirs ends in an id of their own
//! (`hand_out_with_ids`).
//!
//! [`Pass`] is the only way to a batch, and [`Pass::run`] the only way to a `Pass`. Since it borrows the rooms until it
//! has handed out every batch, no member can come or go while a batch exists.

use super::{
    batch::{Batch, Entry, SealedBatch},
    conn::FlushQueue,
    feed::Step,
    members::{CustomMember, PresenceEvents},
    outgoing::{Ended, Outgoing},
    room::{RoomEntry, RoomRef},
    rooms::{Reached, Rooms},
};
use crate::protocol::{
    FrameShape, end_event,
    event::{Event, MemberView},
    native,
};
use bytes::BytesMut;
use fanfare_broker::{Cursor, Delivery, Offset, PresenceEvent, PresenceKind, Publication, Room, RoomEvent};
use std::{collections::BTreeMap, ops::Range};

/// Members of rooms with at most this many members are written to before those of larger rooms.
const SMALL_ROOM: usize = 64;

/// Delivers messages into the rooms' batches, and the batches to the members.
pub(super) struct Pass<'a> {
    rooms: &'a mut Rooms,
    outgoing: &'a mut Outgoing,
    /// The rooms that have a batch.
    batched: Vec<u32>,
    /// Presence events, by room.
    announced: BTreeMap<u32, Announced>,
    result: PassResult,
}

/// The presence events of one room in one pass, as frames back to back.
#[derive(Default)]
struct Announced {
    bytes: [BytesMut; FrameShape::COUNT],
    /// The version of each event, and where its frame ends in the bytes of each shape; ascending.
    events: Vec<(u64, [usize; FrameShape::COUNT])>,
}

/// What a pass has done, and what the shard has to do after it.
#[derive(Default)]
pub(super) struct PassResult {
    /// Whether a room had a batch.
    pub(super) has_batches: bool,
    /// Messages queued for members, by shape.
    pub(super) delivered: [u64; FrameShape::COUNT],
    /// Sessions that read too slowly. They get nothing more, and are still in their rooms.
    pub(super) ended: Vec<Ended>,
    /// Holes to be filled from history after the cursor.
    pub(super) catch_ups: Vec<(RoomRef, Cursor)>,
    /// Rooms whose members have missed presence events, and need a new list.
    pub(super) relists: Vec<RoomRef>,
}

impl<'a> Pass<'a> {
    /// Lets `deliver` fill batches, then hands out all of them. Returns what `deliver` returned, too.
    pub(super) fn run<T>(
        rooms: &'a mut Rooms,
        outgoing: &'a mut Outgoing,
        deliver: impl FnOnce(&mut Self) -> T,
    ) -> (T, PassResult) {
        // Reuses the vector of the last pass.
        let batched = std::mem::take(&mut rooms.spare_indices);
        let mut pass = Self { rooms, outgoing, batched, announced: BTreeMap::new(), result: PassResult::default() };
        let returned = deliver(&mut pass);
        pass.hand_out_all();
        (returned, pass.result)
    }

    // --- into the batches ---

    /// Takes one event from the broker. A message goes through the room's feed, which holds it back if others are
    /// missing before it.
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        let Some(index) = self.rooms.find(delivery.room.as_str()) else { return };
        let Some(entry) = self.rooms.get_mut(index) else { return };
        let room = entry.at(index);
        match delivery.event {
            RoomEvent::Message(publication) => match entry.feed.on_message(publication) {
                Step::Deliver(publication) => self.append(index, publication),
                Step::Nothing => {}
                Step::CatchUp(since) => self.result.catch_ups.push((room, since)),
            },
            RoomEvent::Head(head) => self.result.catch_ups.extend(entry.feed.on_head(head).map(|since| (room, since))),
            RoomEvent::Presence(event) => self.announce(index, &event),
            RoomEvent::PresenceVersion(version) if version > entry.presence_version => {
                self.lose_presence(index, version);
            }
            RoomEvent::PresenceVersion(_) => {}
        }
    }

    /// The inbox dropped deliveries of this room, so the feed has to read history.
    pub(super) fn on_behind(&mut self, room: &Room) {
        let Some(index) = self.rooms.find(room.as_str()) else { return };
        let Some(entry) = self.rooms.get_mut(index) else { return };
        let room = entry.at(index);
        self.result.catch_ups.extend(entry.feed.on_behind().map(|since| (room, since)));
    }

    /// The inbox dropped presence events of this room, up to a version.
    pub(super) fn on_presence_behind(&mut self, room: &Room, version: u64) {
        if let Some(index) = self.rooms.find(room.as_str()) {
            self.lose_presence(index, version);
        }
    }

    /// Presence events of this room up to a version were lost.
    fn lose_presence(&mut self, index: u32, version: u64) {
        let Some(entry) = self.rooms.get_mut(index) else { return };
        if entry.lose_presence() {
            entry.misses_presence(version);
            self.result.relists.push(entry.at(index));
        }
    }

    /// Encodes a message into the room's batch, and keeps it for clients that resume.
    pub(super) fn append(&mut self, index: u32, publication: Publication) {
        let Some(entry) = self.rooms.get_mut(index) else { return };
        if !entry.members.is_empty() {
            let text = native::MessageText::new(&entry.name, &publication);
            let at = publication.cursor;
            let before = at.map(|at| Cursor::new(at.epoch, Offset(at.offset.0.saturating_sub(1))));
            let frame = Entry { name: None, text: &text.parts(&publication), author: publication.author, at };
            if push(entry, before, &frame) {
                self.batched.push(index);
            }
        }
        entry.wake_polls();
        self.rooms.remember(index, publication);
    }

    /// Appends a `gap` frame at this point of the message sequence: the messages between the two cursors are lost.
    pub(super) fn append_gap(&mut self, index: u32, Range { start: from, end: to }: Range<Cursor>) {
        let Some(entry) = self.rooms.get_mut(index) else { return };
        let text = native::encode(&Event::Gap { room: entry.name.as_str(), from, to });
        let frame = Entry { name: Some("gap"), text: &[&text], author: None, at: Some(to) };
        if push(entry, Some(from), &frame) {
            self.batched.push(index);
        }
        entry.wake_polls();
    }

    // --- out of the batches ---

    fn hand_out_all(&mut self) {
        for (index, announced) in std::mem::take(&mut self.announced) {
            self.hand_out_announced(index, announced);
        }
        let now_ms = self.outgoing.now_ms();
        self.result.has_batches = !self.batched.is_empty();
        let mut batched = std::mem::take(&mut self.batched);
        for index in batched.drain(..) {
            let Some(batch) = self.rooms.get_mut(index).and_then(|entry| entry.batch.take()) else { continue };
            let batch = batch.seal(&self.outgoing.held);
            let Some(entry) = self.rooms.get(index) else { continue };
            let queue = if entry.members.len() <= SMALL_ROOM { FlushQueue::Urgent } else { FlushQueue::Bulk };
            self.hand_out(index, &batch, queue, now_ms);
            self.hand_out_with_ids(index, &batch, queue, now_ms);
        }
        self.rooms.spare_indices = batched; // for the next pass
    }

    /// Queues a batch for the members who share frames: `plain` members, and those `custom` members who do not have
    /// event ids of their own.
    fn hand_out(&mut self, index: u32, batch: &SealedBatch, queue: FlushQueue, now_ms: u32) {
        let Some(RoomEntry { members, .. }) = self.rooms.get(index) else { return };
        // Plain members get every message: each gets a reference to the same bytes.
        for shape in FrameShape::ALL {
            let (indices, frames) = (&members.plain[shape as usize], &batch.frames[shape as usize]);
            self.result.delivered[shape as usize] += u64::from(frames.count()) * indices.len() as u64;
            self.result.ended.extend(self.outgoing.queue_for_all(indices, std::array::from_ref(frames), queue, now_ms));
        }
        // Custom members may exclude messages: they get references to the stretches of bytes between those.
        for member in members.custom.iter().filter(|member| !member.has_own_ids) {
            batch.pick(member.shape, &member.excluded, |run| {
                self.result.delivered[member.shape as usize] += u64::from(run.count());
                self.result.ended.extend(self.outgoing.queue_for_all(&[member.session], &[run], queue, now_ms));
            });
        }
    }

    /// Queues a batch for event streams of several rooms: each event's id names the client's cursors in all of them. So
    /// the client shares an event up to its id, and gets a buffer of its own with all the ids of the batch. The batch's
    /// marks say where each event ends and where its id begins.
    fn hand_out_with_ids(&mut self, index: u32, batch: &SealedBatch, queue: FlushQueue, now_ms: u32) {
        let Some(entry) = self.rooms.get(index) else { return };
        let events = &batch.frames[FrameShape::Sse as usize];
        for CustomMember { session, excluded, .. } in entry.members.custom.iter().filter(|member| member.has_own_ids) {
            let Some(conn) = self.outgoing.sessions.at(*session) else { continue };
            let (mut ids, mut parts, mut start) = (BytesMut::new(), Vec::with_capacity(batch.marks.len()), 0);
            for mark in &batch.marks {
                if !mark.is_excluded(excluded) {
                    let here = Reached { room: index, cursor: mark.at };
                    let id_at = ids.len();
                    end_event(&mut ids, Some(&self.rooms.cursors(conn, Some(here))));
                    parts.push((start..mark.id_at, id_at..ids.len()));
                }
                start = mark.ends[FrameShape::Sse as usize];
            }
            self.result.delivered[FrameShape::Sse as usize] += parts.len() as u64;
            let ids = self.outgoing.held.own(ids.freeze());
            for (event, id) in parts {
                let parts = [events.slice(event, 0), ids.slice(id, 1)];
                self.result.ended.extend(self.outgoing.queue_for_all(&[*session], &parts, queue, now_ms));
            }
        }
    }

    // --- presence ---

    /// Appends a presence event to those of the room.
    fn announce(&mut self, index: u32, event: &PresenceEvent) {
        let Some(entry) = self.rooms.get_mut(index) else { return };
        let gets_events = |member: &CustomMember| member.presence != PresenceEvents::No;
        if entry.held.is_none() && !entry.members.custom.iter().any(gets_events) {
            entry.presence_version = 0;
            return;
        }
        if entry.misses_presence(event.version) && entry.lose_presence() {
            self.result.relists.push(entry.at(index));
        }
        let member = MemberView::new(&event.who, None, event.info.as_deref());
        let room = entry.name.as_str();
        let change = match event.kind {
            PresenceKind::Joined => Event::MemberJoined { room, member },
            PresenceKind::Left => Event::MemberLeft { room, member },
        };
        let announced = self.announced.entry(index).or_default();
        for shape in FrameShape::ALL {
            announced.bytes[shape as usize].extend_from_slice(&native::frame(shape, &change, None));
        }
        announced.events.push((event.version, announced.bytes.each_ref().map(BytesMut::len)));
    }

    /// Sends presence events to the members that asked for them, and holds them for those whose list is on its way. They
    /// come before all messages of this pass.
    fn hand_out_announced(&mut self, index: u32, Announced { bytes, events }: Announced) {
        let Some(entry) = self.rooms.get_mut(index) else { return };
        let count = events.len() as u32;
        let frames = bytes.map(|bytes| self.outgoing.held.shared(bytes, count));
        let begin = |at: usize, shape: usize| at.checked_sub(1).map_or(0, |before| events[before].1[shape]);
        for CustomMember { session, shape, presence, .. } in &entry.members.custom {
            let PresenceEvents::After(version) = presence else { continue };
            let first = events.partition_point(|(at, _)| at <= version);
            if first < events.len() {
                let frames = &frames[*shape as usize];
                let new = frames.slice(begin(first, *shape as usize)..frames.bytes().len(), count - first as u32);
                self.result.ended.extend(self.outgoing.queue(*session, &new));
            }
        }
        if let Some(held) = &mut entry.held {
            for (at, (version, ends)) in events.iter().enumerate() {
                let one = |shape: usize| frames[shape].slice(begin(at, shape)..ends[shape], 1);
                held.push(*version, std::array::from_fn(one));
            }
        }
    }
}

/// Appends a frame to the room's batch; `true` if it is the first of the pass. `before` is the members' cursor before
/// this frame.
fn push(entry: &mut RoomEntry, before: Option<Cursor>, frame: &Entry<'_>) -> bool {
    let is_first = entry.batch.is_none();
    entry.batch.get_or_insert_with(|| Box::new(Batch::new(&entry.members, before))).push(frame);
    is_first
}
