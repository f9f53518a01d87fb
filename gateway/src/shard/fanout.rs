//! The hot loop and nothing else: a message is encoded once, appended to its room's batch, and at the end of the pass
//! each member's outbox gets a reference to the batch. No lock, clock, allocation or label look-up per delivery.

use super::{
    Shard, State,
    conn::Lane,
    feed::Step,
    rooms::{Batch, COMING_MAX, Mark, MarkKind, RoomEntry},
};
use crate::{
    close::CloseReason,
    event::{Event as ClientEvent, MemberView},
    protocol::{FrameShape, native, put_frame},
    session::Frames,
};
use bytes::{Bytes, BytesMut};
use fanfare_broker::{Cursor, Delivery, Event, Origin, PresenceEvent, PresenceKind, Publication, Room};
use std::rc::Rc;

/// Members up to which a room counts as small: its members are written to before those of larger ones.
const SMALL_ROOM: usize = 64;

impl Shard {
    /// One event from the broker.
    pub(super) fn on_delivery(self: &Rc<Self>, state: &mut State, delivery: Delivery) {
        let Some(key) = state.rooms.find(delivery.room.as_str()) else { return };
        let Some(entry) = state.rooms.get_mut(key) else { return };
        let step = match delivery.event {
            Event::Message(publication) => entry.feed.on_message(publication),
            Event::Head(head) => entry.feed.on_head(head),
            Event::Presence(event) => return self.announce(state, key, &event),
        };
        self.obey(state, key, step);
    }

    /// Deliveries of this room did not fit the inbox.
    pub(super) fn on_behind(self: &Rc<Self>, state: &mut State, room: &Room) {
        let Some(key) = state.rooms.find(room.as_str()) else { return };
        let step = state.rooms.get_mut(key).map_or(Step::Nothing, |entry| entry.feed.on_behind());
        self.obey(state, key, step);
    }

    pub(super) fn obey(self: &Rc<Self>, state: &mut State, key: u32, step: Step) {
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
        let mut delivered = 0;
        for key in dirty.drain(..) {
            delivered += self.hand_out(state, key, now_ms, &mut overflowed);
            for (index, frames) in overflowed.drain(..) {
                delivered += u64::from(frames.count);
                self.queue(state, index, frames);
            }
        }
        state.dirty = dirty;
        self.node.metrics.delivered_ws.inc_by(delivered);
        any
    }

    fn hand_out(&self, state: &mut State, key: u32, now_ms: u32, overflowed: &mut Vec<(u32, Frames)>) -> u64 {
        let Some(entry) = state.rooms.get_mut(key) else { return 0 };
        let Some(batch) = entry.batch.take() else { return 0 };
        let Batch { bytes, count, marks } = *batch;
        let frames = Frames { bytes: bytes.freeze(), count };
        let lane = if entry.members() <= SMALL_ROOM { Lane::Urgent } else { Lane::Bulk };
        let limits = &self.node.outbox_limits;
        let mut delivered = 0;
        let mut wake = false;
        let queue = if lane == Lane::Urgent { &mut state.urgent } else { &mut state.bulk };
        let mut push = |index: u32, frames: Frames| {
            let Some(conn) = state.sessions.at(index) else { return };
            let (bytes, count) = (frames.bytes.len(), frames.count);
            let again = overflowed.last().is_some_and(|(last, _)| *last == index);
            if again || conn.outbox.push(frames.clone(), now_ms, limits).is_err() {
                overflowed.push((index, frames));
                return;
            }
            state.outbox_bytes += bytes;
            delivered += u64::from(count);
            if !conn.blocked && conn.lane != Lane::Urgent && conn.lane != lane {
                conn.lane = lane;
                wake |= queue.is_empty();
                queue.push_back(index);
            }
        };
        for index in &entry.plain {
            push(*index, frames.clone());
        }
        for special in &entry.special {
            pick(&frames.bytes, &marks, &special.without, |run| push(special.session, run));
        }
        if wake {
            self.inbox.wake();
        }
        delivered
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
        let wishing = entry.special.iter().filter(|s| s.presence_after.is_some_and(|after| event.version > after));
        let wishing: Vec<u32> = wishing.map(|s| s.session).collect();
        if wishing.is_empty() && entry.coming.is_empty() {
            return;
        }
        let member = MemberView { who: &event.who, sessions: None, info: event.info.as_deref() };
        let room = &entry.name;
        let text = native::encode(&match event.kind {
            PresenceKind::Joined => ClientEvent::MemberJoined { room, member },
            PresenceKind::Left => ClientEvent::MemberLeft { room, member },
        });
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, FrameShape::NativeWebSocket, &[&text]);
        let frames = Frames { bytes: bytes.freeze(), count: 1 };
        let Some(entry) = state.rooms.get_mut(key) else { return };
        for coming in entry.coming.iter_mut().filter(|coming| coming.events.len() < COMING_MAX) {
            coming.events.push((event.version, frames.clone()));
        }
        for index in wishing {
            self.queue(state, index, frames.clone());
        }
    }
}

/// Encodes a message into its room's batch and keeps it for resumes.
pub(super) fn append(state: &mut State, key: u32, publication: Publication) {
    let Some(entry) = state.rooms.get_mut(key) else { return };
    if entry.members() > 0 {
        let text = native::MessageText::new(&entry.name, &publication);
        let origin = publication.origin;
        put(entry, &mut state.dirty, key, &text.parts(&publication), MarkKind::Message(origin));
    }
    state.rooms.remember(key, publication);
}

/// Tells a room's members that messages are gone, in the order of its messages.
pub(super) fn append_gap(state: &mut State, key: u32, from: Cursor, to: Cursor) {
    let Some(entry) = state.rooms.get_mut(key) else { return };
    let text = native::encode(&ClientEvent::Gap { room: &entry.name, from, to });
    put(entry, &mut state.dirty, key, &[&text], MarkKind::Notice);
}

fn put(entry: &mut RoomEntry, dirty: &mut Vec<u32>, key: u32, text: &[&[u8]], kind: MarkKind) {
    let batch = entry.batch.get_or_insert_with(|| {
        dirty.push(key);
        Box::default()
    });
    put_frame(&mut batch.bytes, FrameShape::NativeWebSocket, text);
    batch.count += 1;
    if !entry.special.is_empty() {
        batch.marks.push(Mark { end: batch.bytes.len(), kind });
    }
}

/// Cuts a batch into the runs of frames that a member wants; one run, without copying, if it wants them all.
fn pick(bytes: &Bytes, marks: &[Mark], without: &[Origin], mut take: impl FnMut(Frames)) {
    let (mut start, mut end, mut count) = (0, 0, 0);
    for mark in marks {
        match mark.kind {
            MarkKind::Message(origin) if without.contains(&origin) => {
                if count > 0 {
                    take(Frames { bytes: bytes.slice(start..end), count });
                }
                (start, end, count) = (mark.end, mark.end, 0);
            }
            MarkKind::Message(_) | MarkKind::Notice => (end, count) = (mark.end, count + 1),
        }
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
        let (mine, other) = (Origin([1; 12]), Origin([2; 12]));
        let bytes = Bytes::from_static(b"aabbccdd");
        let kinds = [MarkKind::Message(other), MarkKind::Message(mine), MarkKind::Notice, MarkKind::Message(other)];
        let marks: Vec<Mark> = kinds.into_iter().zip([2, 4, 6, 8]).map(|(kind, end)| Mark { end, kind }).collect();
        let runs = |without: &[Origin]| {
            let mut runs = vec![];
            pick(&bytes, &marks, without, |f| runs.push((f.bytes, f.count)));
            runs
        };
        assert_eq!(runs(&[]), [(bytes.clone(), 4)]);
        assert_eq!(runs(&[mine]), [(Bytes::from("aa"), 1), (Bytes::from("ccdd"), 2)]);
        assert_eq!(runs(&[other]), [(Bytes::from("bbcc"), 2)]);
    }
}
