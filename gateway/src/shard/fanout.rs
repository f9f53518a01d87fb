//! The hot loop and nothing else: a message is encoded once, appended to its room's batch, and at the end of the pass
//! each member's outbox gets a reference to the batch. No lock, clock, allocation or label look-up per delivery.

use super::{
    Shard, State,
    conn::FlushQueue,
    feed::Step,
    rooms::{Batch, CustomMember, Mark, PENDING_PRESENCE_MAX, RoomEntry},
};
use crate::{
    protocol::{
        FrameShape,
        close::CloseReason,
        end_event,
        event::{Event, MemberView},
        name_event, native, put_frame,
    },
    session::Frames,
};
use bytes::{Bytes, BytesMut};
use fanfare_broker::{Cursor, Delivery, Offset, PresenceEvent, PresenceKind, Publication, Room, RoomEvent, SessionId};
use smallvec::SmallVec;
use std::rc::Rc;

/// Members up to which a room counts as small: its members are written to before those of larger ones.
const SMALL_ROOM: usize = 64;

/// A room's batch, frozen.
struct Ready<'a> {
    key: u32,
    frames: &'a [Frames; FrameShape::COUNT],
    marks: &'a [Mark],
    now_ms: u32,
}

impl Shard {
    /// One event from the broker.
    pub(super) fn on_delivery(self: &Rc<Self>, state: &mut State, delivery: Delivery) {
        let Some(key) = state.rooms.find(delivery.room.as_str()) else { return };
        let Some(entry) = state.rooms.get_mut(key) else { return };
        let step = match delivery.event {
            RoomEvent::Message(publication) => entry.feed.on_message(publication),
            RoomEvent::Head(head) => entry.feed.on_head(head),
            RoomEvent::Presence(event) => return self.announce(state, key, &event),
        };
        self.apply(state, key, step);
    }

    /// Deliveries of this room did not fit the inbox.
    pub(super) fn on_behind(self: &Rc<Self>, state: &mut State, room: &Room) {
        let Some(key) = state.rooms.find(room.as_str()) else { return };
        let step = state.rooms.get_mut(key).map_or(Step::Nothing, |entry| entry.feed.on_behind());
        self.apply(state, key, step);
    }

    pub(super) fn apply(self: &Rc<Self>, state: &mut State, key: u32, step: Step) {
        match step {
            Step::Deliver(publication) => append(state, key, publication),
            Step::Nothing => {}
            Step::CatchUp(since) => self.start_catch_up(state, key, since),
        }
    }

    /// Hands each dirty room's batch to its members; `true` if there was one.
    pub(super) fn fan_out(&self, state: &mut State) -> bool {
        let mut dirty = std::mem::take(&mut state.dirty);
        let any = !dirty.is_empty();
        let now_ms = self.now_ms();
        let mut overflowed = Vec::new();
        let mut delivered = [0; FrameShape::COUNT];
        for key in dirty.drain(..) {
            let Some(batch) = state.rooms.get_mut(key).and_then(|entry| entry.batch.take()) else { continue };
            let Batch { bytes, count, marks, .. } = *batch;
            let frames = bytes.map(|bytes| Frames { bytes: bytes.freeze(), count });
            let ready = Ready { key, frames: &frames, marks: &marks, now_ms };
            let handed = self.hand_out(state, &ready, &mut overflowed);
            delivered.iter_mut().zip(handed).for_each(|(sum, handed)| *sum += handed);
            for (index, frames) in overflowed.drain(..) {
                self.queue(state, index, frames);
            }
            self.hand_out_with_ids(state, key, &frames[FrameShape::Event as usize].bytes, &marks);
        }
        state.dirty = dirty;
        // Once a pass: other threads count on the same words.
        for (counter, delivered) in self.node.metrics.delivered.iter().zip(delivered).filter(|(_, sum)| *sum > 0) {
            counter.inc_by(delivered);
        }
        any
    }

    /// Returns how many messages, by shape.
    fn hand_out(
        &self,
        state: &mut State,
        ready: &Ready<'_>,
        overflowed: &mut Vec<(u32, Frames)>,
    ) -> [u64; FrameShape::COUNT] {
        let Ready { key, frames, marks, now_ms } = *ready;
        let mut delivered = [0; FrameShape::COUNT];
        let Some(entry) = state.rooms.get_mut(key) else { return delivered };
        let queued_in = if entry.members() <= SMALL_ROOM { FlushQueue::Urgent } else { FlushQueue::Bulk };
        let limits = &self.node.outbox_limits;
        let mut wake = false;
        let queue = if queued_in == FlushQueue::Urgent { &mut state.urgent } else { &mut state.bulk };
        let mut push = |index: u32, shape: FrameShape, frames: Frames| {
            let Some(conn) = state.sessions.at(index) else { return };
            let (bytes, count) = (frames.bytes.len(), frames.count);
            delivered[shape as usize] += u64::from(count);
            let again = overflowed.last().is_some_and(|(last, _)| *last == index);
            if again || conn.outbox.push(frames.clone(), now_ms, limits).is_err() {
                overflowed.push((index, frames));
                return;
            }
            state.outbox_bytes += bytes;
            if !conn.blocked && conn.queued_in != FlushQueue::Urgent && conn.queued_in != queued_in {
                conn.queued_in = queued_in;
                wake |= queue.is_empty();
                queue.push_back(index);
            }
        };
        for shape in FrameShape::ALL {
            for index in &entry.plain[shape as usize] {
                push(*index, shape, frames[shape as usize].clone());
            }
        }
        for CustomMember { session, shape, excluded, .. } in entry.custom.iter().filter(|custom| !custom.has_own_ids) {
            let bytes = &frames[*shape as usize].bytes;
            pick(bytes, marks, *shape, excluded, |run| push(*session, *shape, run));
        }
        if wake {
            self.inbox.wake();
        }
        delivered
    }

    /// For event streams of several rooms: each event's id says where its own client is in all of them.
    fn hand_out_with_ids(&self, state: &mut State, key: u32, events: &Bytes, marks: &[Mark]) {
        let Some(entry) = state.rooms.get(key) else { return };
        let own = |custom: &&CustomMember| custom.has_own_ids;
        let members: Vec<(u32, SmallVec<[SessionId; 2]>)> =
            entry.custom.iter().filter(own).map(|custom| (custom.session, custom.excluded.clone())).collect();
        for (index, excluded) in members {
            let (mut bytes, mut count, mut start) = (BytesMut::new(), 0, 0);
            for mark in marks {
                let end = mark.ends[FrameShape::Event as usize];
                if !mark.is_excluded(&excluded) {
                    bytes.extend_from_slice(&events[start..mark.id_at]);
                    end_event(&mut bytes, Some(&state.cursors(index, Some((key, mark.at)))));
                    count += 1;
                }
                start = end;
            }
            if count > 0 {
                self.node.metrics.delivered[FrameShape::Event as usize].inc_by(u64::from(count));
                self.queue(state, index, Frames { bytes: bytes.freeze(), count });
            }
        }
    }

    /// Over the node's budget the fullest outbox goes first, until there is room. Only what sockets have refused counts:
    /// frames that are about to be written are shared by their members. Called by the timers: looking at all sessions
    /// is nothing for every pass, and within one tick each outbox has its own limit.
    pub(super) fn evict_fullest(&self, state: &mut State) {
        if state.outbox_bytes <= self.node.shard_outbox_bytes {
            return;
        }
        let mut refused = state.sessions.refused_bytes();
        while refused > self.node.shard_outbox_bytes {
            let Some((who, bytes)) = state.sessions.fullest() else { return };
            refused -= bytes;
            self.end(state, who, CloseReason::TooSlow, None);
        }
    }

    /// Somebody came or went: for those members who wished to know.
    fn announce(&self, state: &mut State, key: u32, event: &PresenceEvent) {
        let Some(entry) = state.rooms.get(key) else { return };
        let wishing = entry.custom.iter().filter(|s| s.presence_after.is_some_and(|after| event.version > after));
        let wishing: Vec<(u32, FrameShape)> = wishing.map(|s| (s.session, s.shape)).collect();
        if wishing.is_empty() && entry.pending_presence.is_empty() {
            return;
        }
        let member = MemberView { who: &event.who, sessions: None, info: event.info.as_deref() };
        let room = &entry.name;
        let told = match event.kind {
            PresenceKind::Joined => Event::MemberJoined { room, member },
            PresenceKind::Left => Event::MemberLeft { room, member },
        };
        let frames = FrameShape::ALL.map(|shape| {
            let mut bytes = BytesMut::new();
            native::put_event(&mut bytes, shape, &told, None);
            Frames { bytes: bytes.freeze(), count: 1 }
        });
        let Some(entry) = state.rooms.get_mut(key) else { return };
        for pending in entry.pending_presence.iter_mut().filter(|pending| pending.events.len() < PENDING_PRESENCE_MAX) {
            pending.events.push((event.version, frames[pending.shape as usize].clone()));
        }
        for (index, shape) in wishing {
            self.queue(state, index, frames[shape as usize].clone());
        }
    }
}

/// Encodes a message into its room's batch and keeps it for resumes.
pub(super) fn append(state: &mut State, key: u32, publication: Publication) {
    let Some(entry) = state.rooms.get_mut(key) else { return };
    if entry.members() > 0 {
        let text = native::MessageText::new(&entry.name, &publication);
        let at = publication.cursor;
        let before = at.map(|at| Cursor::new(at.epoch, Offset(at.offset.0.saturating_sub(1))));
        let author = publication.author;
        put(entry, &mut state.dirty, key, (None, &text.parts(&publication)), Moves { author, before, at });
    }
    entry.wake_parked();
    state.rooms.remember(key, publication);
}

/// Tells a room's members that messages are gone, in the order of its messages.
pub(super) fn append_gap(state: &mut State, key: u32, from: Cursor, to: Cursor) {
    let Some(entry) = state.rooms.get_mut(key) else { return };
    let gap = Event::Gap { room: &entry.name, from, to };
    let text = native::encode(&gap);
    let moves = Moves { author: None, before: Some(from), at: Some(to) };
    put(entry, &mut state.dirty, key, (Some(gap.name()), &[&text]), moves);
    if let Some(entry) = state.rooms.get(key) {
        entry.wake_parked();
    }
}

/// Whose a frame is, and from where to where it takes a member.
struct Moves {
    author: Option<SessionId>,
    before: Option<Cursor>,
    at: Option<Cursor>,
}

fn put(
    entry: &mut RoomEntry,
    dirty: &mut Vec<u32>,
    key: u32,
    (name, text): (Option<&str>, &[&[u8]]),
    Moves { author, before, at }: Moves,
) {
    if entry.batch.is_none() {
        dirty.push(key);
    }
    let is_marked = !entry.custom.is_empty();
    let batch = entry.batch(before);
    let mut id_at = 0;
    for shape in FrameShape::ALL.into_iter().filter(|shape| batch.wanted[*shape as usize]) {
        let bytes = &mut batch.bytes[shape as usize];
        if shape != FrameShape::Event {
            put_frame(bytes, shape, text);
            continue;
        }
        if let Some(name) = name {
            name_event(bytes, name);
        }
        put_frame(bytes, shape, text);
        id_at = bytes.len();
        end_event(bytes, Some(at.map(native::cursor_text).as_deref().unwrap_or(b"-")));
    }
    batch.count += 1;
    if is_marked {
        let ends = std::array::from_fn(|shape| batch.bytes[shape].len());
        batch.marks.push(Mark { ends, id_at, author, at });
    }
}

/// Cuts a batch into the runs of frames that a member wants; one run, without copying, if it wants them all.
fn pick(bytes: &Bytes, marks: &[Mark], shape: FrameShape, excluded: &[SessionId], mut take: impl FnMut(Frames)) {
    let (mut start, mut end, mut count) = (0, 0, 0);
    for mark in marks {
        let here = mark.ends[shape as usize];
        if !mark.is_excluded(excluded) {
            (end, count) = (here, count + 1);
            continue;
        }
        if count > 0 {
            take(Frames { bytes: bytes.slice(start..end), count });
        }
        (start, end, count) = (here, here, 0);
    }
    if count > 0 {
        take(Frames { bytes: bytes.slice(start..end), count });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_gets_runs_without_the_messages_it_keeps_away() {
        let (mine, other) = (SessionId([1; 12]), SessionId([2; 12]));
        let bytes = Bytes::from_static(b"aabbccdd");
        let authors = [Some(other), Some(mine), None, Some(other)];
        let mark = |(author, end)| Mark { ends: [end, 0, 0], id_at: 0, author, at: None };
        let marks: Vec<Mark> = authors.into_iter().zip([2, 4, 6, 8]).map(mark).collect();
        let runs = |excluded: &[SessionId]| {
            let mut runs = vec![];
            pick(&bytes, &marks, FrameShape::WebSocket, excluded, |f| runs.push((f.bytes, f.count)));
            runs
        };
        assert_eq!(runs(&[]), [(bytes.clone(), 4)]);
        assert_eq!(runs(&[mine]), [(Bytes::from("aa"), 1), (Bytes::from("ccdd"), 2)]);
        assert_eq!(runs(&[other]), [(Bytes::from("bbcc"), 2)]);
    }
}
