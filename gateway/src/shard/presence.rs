//! Who is in a room, as its members hear of it: the list in portions that wait for the client's outbox, then the events
//! that came meanwhile, then each event as it comes. Begun by `admit` for a join, and here when events were lost.
//!
//! Presence versions of a room grow by one with each change. A member that has the list of a version needs every event
//! after it. The room holds events back for all members whose list is on its way. If one is missing after the list that a
//! member has, because it was lost or did not fit, the member gets a new list.

use super::{
    SessionRef, Shard, State,
    catch_up::Retry,
    member_list::{PAGE_BYTES_MAX, Pages, inline, is_inline},
    room::RoomRef,
};
use crate::{protocol::event::Event, session::Stage};
use fanfare_broker::{Presence, PresenceDetail, Room};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::sleep};

/// Between two lists that are read because events were lost: a storm goes on for a while.
const RELIST_EVERY: Duration = Duration::from_millis(500);

/// A member list on its way to one member.
#[derive(Debug)]
struct Listing {
    session: SessionRef,
    room: RoomRef,
    /// The number of the member's join. If it joins again, that join sends a list of its own.
    join: u32,
    pages: Rc<Pages>,
    /// How many of the pages have been sent.
    sent: usize,
    /// The list and the events that have been sent are up to this version.
    version: u64,
}

/// A member from which presence events are held back while it gets an answer with the list.
#[derive(Debug, Clone, Copy)]
pub(super) struct PausedEvents {
    session: SessionRef,
    room: RoomRef,
    join: u32,
    /// The client has had the events up to this version.
    pub(super) version: u64,
}

impl State {
    /// The largest page: four of them fill an outbox.
    pub(super) fn page_bytes(&self) -> usize {
        PAGE_BYTES_MAX.min(self.node.outbox_limits.bytes / 4)
    }

    /// Sends a member the rest of its list, after the frame that began it, and then the events since.
    pub(super) fn list_members(&mut self, session: SessionRef, room: RoomRef, presence: &Arc<Presence>) {
        let page_bytes = self.page_bytes();
        let Some(entry) = self.rooms.resolve(room) else { return };
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        let Some(membership) = conn.session.membership(room.index) else { return };
        entry.hold_presence(session.index);
        let held = entry.held.get_or_insert_default();
        let known = held.pages.take().filter(|pages| Arc::ptr_eq(&pages.presence, presence));
        let pages =
            known.unwrap_or_else(|| Rc::new(Pages::new(Arc::clone(presence), page_bytes, self.outgoing.held.clone())));
        held.pages = Some(Rc::clone(&pages));
        let version = presence.version;
        self.begin_listing(Listing { session, room, join: membership.join, pages, sent: 0, version });
    }

    fn begin_listing(&mut self, mut listing: Listing) {
        if let Some(drained) = self.advance_listing(&mut listing) {
            self.spawn(|shard| shard.list_slowly(listing, drained));
        }
    }

    /// Holds the room's presence events back from a member that asks for the list. `Some(None)`: the client gets none, or
    /// is no member; `None`: another list is on its way to it, or it joins again.
    pub(super) fn pause_events(&mut self, session: SessionRef, room: &Room) -> Option<Option<PausedEvents>> {
        let Some(index) = self.rooms.find(room.as_str()) else { return Some(None) };
        let (Some(entry), Some(conn)) = (self.rooms.get_mut(index), self.outgoing.sessions.get_open(session)) else {
            return Some(None);
        };
        let Some(membership) = conn.session.membership(index) else { return Some(None) };
        let is_held = entry.held.as_ref().is_some_and(|held| held.holders.contains(&session.index));
        if is_held || membership.stage == Stage::Rejoining {
            return None;
        }
        let Some(version) = entry.members.pause_presence(session.index) else { return Some(None) };
        entry.hold_presence(session.index);
        let version = version.max(entry.presence_version);
        Some(Some(PausedEvents { session, room: entry.at(index), join: membership.join, version }))
    }

    /// Sends a member the events that were held back while it got a list of this version. It gets each event once, also one
    /// that the list has: a client may take the list as an answer only, and go on with its own. If the list is older than
    /// what the client has had, it gets another one.
    pub(super) fn resume_events(&mut self, paused: PausedEvents, listed: u64) {
        let PausedEvents { session, room, join, version } = paused;
        let pages = Rc::new(Pages::new(Arc::default(), self.page_bytes(), self.outgoing.held.clone()));
        self.begin_listing(Listing { session, room, join, pages, sent: 0, version: version.min(listed) });
    }

    /// Sends what the client's outbox has space for. Returns what to wait for; `None`: the member has all, or gets another
    /// list.
    fn advance_listing(&mut self, listing: &mut Listing) -> Option<oneshot::Receiver<()>> {
        let (session, room) = (listing.session, listing.room);
        loop {
            let entry = self.rooms.resolve(room)?;
            let conn = self.outgoing.sessions.get_open(session)?;
            conn.session.membership(room.index).filter(|membership| membership.join == listing.join)?;
            let held = entry.held.as_mut()?;
            // Events between the list and the next one that the room holds were lost, or did not fit.
            let next = held.after(listing.version).map(|(at, frames)| (*at, frames[conn.shape as usize].clone()));
            if next.as_ref().map_or(entry.presence_version, |(at, _)| at - 1) > listing.version {
                held.to_list.push(session.index);
                self.relist(room);
                return None;
            }
            let page = listing.pages.of(conn.shape, &entry.name).get(listing.sent);
            let Some((version, frames)) = page.map(|page| (listing.version, page.clone())).or(next) else {
                entry.members.resume_presence(session.index, listing.version);
                entry.release_presence(session.index);
                // A list may be ahead of the events, which the other members still have to get.
                if entry.presence_version == 0 {
                    entry.presence_version = listing.version;
                }
                return None;
            };
            if let Some(drained) = conn.wait_for_space(&self.node.outbox_limits) {
                return Some(drained);
            }
            listing.sent += 1;
            listing.version = version;
            self.queue_frames(session.index, &frames);
        }
    }

    /// Begins to read a new list for those who need one, unless that is under way.
    pub(super) fn relist(&mut self, room: RoomRef) {
        let Some(held) = self.rooms.resolve(room).and_then(|entry| entry.held.as_mut()) else { return };
        if !held.to_list.is_empty() && !std::mem::replace(&mut held.is_reading, true) {
            self.spawn(|shard| shard.read_list(room));
        }
    }

    /// Gives a new list to the members that need one.
    fn give_list(&mut self, room: RoomRef, sessions: Vec<u32>, presence: &Arc<Presence>) {
        for index in sessions {
            let Some(entry) = self.rooms.resolve(room) else { return };
            let name = entry.name.clone();
            let Some(conn) = self.outgoing.sessions.at(index) else { continue };
            let session = SessionRef { index, generation: conn.generation };
            let more = !is_inline(presence);
            let (count, members) = (presence.users, inline(presence));
            self.send(index, &Event::Presence { id: None, room: name.as_str(), count, members, more });
            self.list_members(session, room, presence);
        }
    }
}

impl Shard {
    async fn list_slowly(self: Rc<Self>, mut listing: Listing, mut drained: oneshot::Receiver<()>) {
        // A session that closes drops the sender.
        while drained.await.is_ok() {
            match self.state.borrow_mut().advance_listing(&mut listing) {
                Some(next) => drained = next,
                None => return,
            }
        }
    }

    /// Reads lists until no member needs another one.
    async fn read_list(self: Rc<Self>, room: RoomRef) {
        let mut retry = Retry::new();
        loop {
            let Some(name) = self.room(room, |entry| entry.name.clone()) else { return };
            let presence = self.node.broker.presence(&name, PresenceDetail::Members).await;
            let presence = match presence {
                Ok(presence) => presence,
                Err(why) => {
                    tracing::debug!(room = %name, %why, "cannot read the members yet");
                    retry.wait().await;
                    continue;
                }
            };
            retry.reset();
            let sessions = self.take_to_list(room);
            self.state.borrow_mut().give_list(room, sessions, &presence);
            sleep(RELIST_EVERY).await;
            let state = &mut *self.state.borrow_mut();
            let Some(entry) = state.rooms.resolve(room) else { return };
            let Some(held) = &mut entry.held else { return };
            if held.to_list.is_empty() {
                held.is_reading = false;
                return entry.drop_held_events();
            }
        }
    }

    fn take_to_list(&self, room: RoomRef) -> Vec<u32> {
        let state = &mut *self.state.borrow_mut();
        let held = state.rooms.resolve(room).and_then(|entry| entry.held.as_mut());
        held.map(|held| std::mem::take(&mut held.to_list)).unwrap_or_default()
    }
}
