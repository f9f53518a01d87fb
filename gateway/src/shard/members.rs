//! The member lists of one room on one shard. Written only by joins and leaves (`State`); read by the fan-out (`Pass`).

use crate::protocol::FrameShape;
use fanfare_broker::SessionId;
use smallvec::SmallVec;

/// The members that a room has on this shard.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Members that get every message in frames shared with others, by the shape of the frames. Only the session's
    /// index is kept, so that the fan-out reads four bytes per member.
    pub(super) plain: [Vec<u32>; FrameShape::COUNT],
    /// Members with an option of their own: presence events, excluded messages, or event ids of several rooms.
    pub(super) custom: Vec<CustomMember>,
}

/// A member that does not get the batch as it is, or gets presence events too.
#[derive(Debug)]
pub(super) struct CustomMember {
    pub(super) session: u32,
    pub(super) shape: FrameShape,
    /// The ids of its events name the cursors of several rooms, so its frames are encoded for it alone.
    pub(super) has_own_ids: bool,
    pub(super) presence: PresenceEvents,
    /// It does not get messages that these sessions published.
    pub(super) excluded: SmallVec<[SessionId; 2]>,
}

/// Whether a member gets presence events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PresenceEvents {
    No,
    /// Not before it has the whole list of members.
    Held,
    /// Those later than this version.
    After(u64),
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.plain.iter().map(Vec::len).sum::<usize>() + self.custom.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.iter().all(Vec::is_empty) && self.custom.is_empty()
    }

    /// Whether a member takes frames of this shape.
    pub(super) fn want(&self, shape: FrameShape) -> bool {
        !self.plain[shape as usize].is_empty() || self.custom.iter().any(|custom| custom.shape == shape)
    }

    pub(super) fn add(&mut self, member: CustomMember) {
        if member.presence == PresenceEvents::No && member.excluded.is_empty() && !member.has_own_ids {
            self.plain[member.shape as usize].push(member.session);
        } else {
            self.custom.push(member);
        }
    }

    /// A member that joins again, or asks for the list, gets no presence events until it has that. Returns the version of
    /// the list that it has had, if it was to get events.
    pub(super) fn pause_presence(&mut self, session: u32) -> Option<u64> {
        let member = self.custom.iter_mut().find(|member| member.session == session)?;
        let PresenceEvents::After(version) = member.presence else { return None };
        member.presence = PresenceEvents::Held;
        Some(version)
    }

    /// The member has the list of this version.
    pub(super) fn resume_presence(&mut self, session: u32, version: u64) {
        let member = self.custom.iter_mut().find(|member| member.session == session);
        if let Some(member) = member.filter(|member| member.presence == PresenceEvents::Held) {
            member.presence = PresenceEvents::After(version);
        }
    }

    /// Holds presence events back from all members that get them, and returns those.
    pub(super) fn hold_presence(&mut self) -> impl Iterator<Item = u32> {
        let listed = self.custom.iter_mut().filter(|member| matches!(member.presence, PresenceEvents::After(_)));
        listed.map(|member| {
            member.presence = PresenceEvents::Held;
            member.session
        })
    }

    pub(super) fn remove(&mut self, session: u32, shape: FrameShape) {
        let plain = &mut self.plain[shape as usize];
        if let Some(index) = plain.iter().position(|member| *member == session) {
            plain.swap_remove(index);
        } else {
            self.custom.retain(|member| member.session != session);
        }
    }
}
