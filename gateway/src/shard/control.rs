//! What a shard does with control messages: it disconnects users whom an operator wants out, and hands posted commands and
//! their replies on (`posts`).

use super::{Shard, State};
use crate::protocol::{
    close::CloseReason,
    control::{ControlMessage, PostedCommands},
    error::ErrorCode,
    event::Event,
};
use bytes::Bytes;
use fanfare_broker::SessionId;
use std::rc::Rc;

impl Shard {
    pub(super) fn on_control(self: &Rc<Self>, state: &mut State, message: Bytes) {
        match ControlMessage::decode(message) {
            // A node's notes reach all of its shards.
            Some(ControlMessage::Command(command)) if command.address.shard == self.me.0 => {
                self.on_command(state, command);
            }
            Some(ControlMessage::Reply { shard, ticket, reply }) if shard == self.me.0 => {
                self.on_reply(state, ticket, reply);
            }
            // No shard of this node has such an address: one of them says so.
            Some(ControlMessage::Command(PostedCommands { address, back, .. }))
                if self.me.0 == 0 && usize::from(address.shard) >= self.node.inboxes.len() =>
            {
                self.send_reply(back, Err(ErrorCode::SessionGone));
            }
            Some(ControlMessage::Command(_) | ControlMessage::Reply { .. }) => {}
            Some(ControlMessage::Kick { room, user }) => {
                if let Ok(session) = user.parse() {
                    self.node.leases.kick(Some(&room), session);
                    // Its poll may be among those that wait.
                    let entry = state.rooms.find(room.as_str()).and_then(|key| state.rooms.get(key));
                    entry.inspect(|entry| entry.wake_parked());
                }
                for who in sessions_of(state, &user) {
                    if self.leave(state, who, room.as_str()) {
                        self.send(state, who.index, &Event::Left { id: None, room: &room, reason: Some("kicked") });
                    }
                }
            }
            Some(ControlMessage::Disconnect { user }) => {
                if let Ok(session) = user.parse() {
                    self.node.leases.kick(None, session);
                    state.rooms.all().for_each(super::rooms::RoomEntry::wake_parked);
                }
                for who in sessions_of(state, &user) {
                    self.end(state, who, CloseReason::Kicked, None);
                }
            }
            None => tracing::debug!("a note of an unknown kind"),
        }
    }
}

/// A user's sessions; an anonymous session is a user named by its id.
fn sessions_of(state: &State, user: &str) -> Vec<super::SessionRef> {
    let anonymous: Option<SessionId> = user.parse().ok();
    let is_user = |session: &crate::session::Session| match session.user() {
        Some(name) => name.as_str() == user,
        None => Some(session.id) == anonymous,
    };
    state.sessions.all_open().filter(|(_, conn)| is_user(&conn.session)).map(|(who, _)| who).collect()
}
