//! What a room keeps for members whose member list is on its way: the events that come meanwhile, and the list in frames
//! that all who get the same list share. Data; `presence` sends it.

use crate::{
    protocol::{
        FrameShape,
        command::RequestId,
        event::{Event, MemberView},
        native,
    },
    session::{Frames, HeldBytes},
};
use bytes::Bytes;
use fanfare_broker::{Member, Presence, Room, Who};
use std::{cell::OnceCell, collections::VecDeque, rc::Rc, sync::Arc};

/// Events that a room holds back at most. A list is read within seconds, and in that time a room has fewer changes.
const EVENTS_MAX: usize = 4096;
/// A list of at most this many bytes is part of the frame that it belongs to. A longer one is in frames of its own, which
/// all who get the same list share.
const INLINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of one such frame, unless the outbox is too small for that.
pub(super) const PAGE_BYTES_MAX: usize = 64 * 1024;
/// Presence events of one room that wait for members whose list is on its way.
#[derive(Debug, Default)]
pub(super) struct HeldEvents {
    /// Sessions whose list is being read or sent.
    pub(super) holders: Vec<u32>,
    /// The frames of each event, by shape, with its version; ascending.
    events: VecDeque<(u64, [Frames; FrameShape::COUNT])>,
    /// Holders that need a new list. A task reads it.
    pub(super) to_list: Vec<u32>,
    /// The task runs.
    pub(super) is_reading: bool,
    /// The latest list in frames.
    pub(super) pages: Option<Rc<Pages>>,
}

/// A member list in frames, each encoded when the first member gets it.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) presence: Arc<Presence>,
    page_bytes: usize,
    counted: HeldBytes,
    frames: [OnceCell<Vec<Frames>>; FrameShape::COUNT],
}

impl HeldEvents {
    pub(super) fn push(&mut self, version: u64, frames: [Frames; FrameShape::COUNT]) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back((version, frames));
    }

    /// The first event after a version.
    pub(super) fn after(&self, version: u64) -> Option<&(u64, [Frames; FrameShape::COUNT])> {
        self.events.get(self.events.partition_point(|(at, _)| *at <= version))
    }
}

/// How many bytes the member takes in a frame, at most.
fn size(member: &Member) -> usize {
    let name = match &member.who {
        Who::User(user) => 2 * user.as_str().len(),
        Who::Session(_) => 16,
    };
    40 + name + member.info.as_ref().map_or(0, |info| info.len() + 8)
}

/// Whether the list is short enough to be part of another frame.
pub(super) fn is_inline(presence: &Presence) -> bool {
    let mut bytes = 0;
    presence.members.iter().all(|member| {
        bytes += size(member);
        bytes <= INLINE_BYTES_MAX
    })
}

/// The members that are part of the frame that the list belongs to: all of a short list, or none.
pub(super) fn inline(presence: &Presence) -> Vec<MemberView<'_>> {
    if is_inline(presence) { presence.members.iter().map(Into::into).collect() } else { Vec::new() }
}

/// Splits a list that is too long for one frame.
pub(super) fn split(members: &[Member], page_bytes: usize) -> impl Iterator<Item = &[Member]> {
    let mut rest = members;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |member: &&Member| {
            bytes += size(member);
            bytes <= page_bytes
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (page, after) = rest.split_at(count);
        rest = after;
        (!page.is_empty()).then_some(page)
    })
}

impl Pages {
    pub(super) fn new(presence: Arc<Presence>, page_bytes: usize, counted: HeldBytes) -> Self {
        Self { presence, page_bytes, counted, frames: Default::default() }
    }

    pub(super) fn of(&self, shape: FrameShape, room: &Room) -> &[Frames] {
        self.frames[shape as usize].get_or_init(|| {
            if is_inline(&self.presence) {
                return Vec::new();
            }
            let pages: Vec<_> = split(&self.presence.members, self.page_bytes).collect();
            let last = pages.len().saturating_sub(1);
            let frame = |(at, page): (usize, &&[Member])| {
                self.counted.shared(members_frame(shape, None, room, page, at < last).into(), 1)
            };
            pages.iter().enumerate().map(frame).collect()
        })
    }
}

pub(super) fn members_frame(shape: FrameShape, id: RequestId, room: &Room, page: &[Member], more: bool) -> Bytes {
    let members = page.iter().map(Into::into).collect();
    let event = Event::Members { id, room: room.as_str(), members, more };
    native::frame(shape, &event, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::SessionId;

    fn frames() -> [Frames; FrameShape::COUNT] {
        FrameShape::ALL.map(|_| HeldBytes::default().own(Bytes::new()))
    }

    /// The room used to keep the first events and drop the later ones, which no list has.
    #[test]
    fn a_room_that_holds_too_many_events_drops_those_that_a_new_list_has() {
        let mut held = HeldEvents::default();
        for version in 1..=EVENTS_MAX as u64 + 100 {
            held.push(version, frames());
        }
        assert_eq!(held.events.len(), EVENTS_MAX);
        let next = |after| held.after(after).map(|(version, _)| *version);
        assert_eq!(next(0), Some(101), "a list of version 0 lacks 100 events");
        assert_eq!((next(100), next(2_000)), (Some(101), Some(2_001)), "a list of version 100 needs no other");
        assert_eq!(next(EVENTS_MAX as u64 + 100), None);
    }

    #[test]
    fn a_long_list_is_split_into_pages_that_all_who_get_it_share() {
        let member = |n: u16| {
            let mut session = SessionId([0; 12]);
            session.0[..2].copy_from_slice(&n.to_be_bytes());
            Member { who: Who::Session(session), sessions: 1, info: None }
        };
        let list = |count| Arc::new(Presence { members: (0..count).map(member).collect(), ..Presence::default() });
        let room = Room::parse("a").unwrap();
        assert!(
            Pages::new(list(100), 1024, HeldBytes::default()).of(FrameShape::Line, &room).is_empty(),
            "it is part of another frame"
        );
        let pages = Pages::new(list(1_000), 1024, HeldBytes::default());
        let frames = pages.of(FrameShape::Line, &room);
        assert!(frames.len() > 40 && frames.iter().all(|frame| frame.bytes().len() < 1_100), "{}", frames.len());
        assert_eq!(pages.of(FrameShape::Line, &room)[3].bytes().as_ptr(), frames[3].bytes().as_ptr(), "encoded once");
        let text = |frame: &Frames| String::from_utf8(frame.bytes().to_vec()).unwrap();
        let users = frames.iter().map(|frame| text(frame).matches("\"user\"").count()).sum::<usize>();
        assert_eq!(users, 1_000);
        let more = frames.iter().filter(|frame| text(frame).contains("\"more\":true")).count();
        assert_eq!(more, frames.len() - 1, "all but the last");
    }
}
