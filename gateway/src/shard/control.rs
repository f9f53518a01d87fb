//! Executes control messages: an operator's kick or disconnect of a user, and posted commands with their replies
//! (`posted`).

use super::{SessionRef, State, room::RoomEntry};
use crate::{
    protocol::{
        close::CloseReason,
        control::{ControlMessage, PostedCommands},
        error::ErrorCode,
        event::Event,
    },
    session::Session,
};
use bytes::Bytes;
use fanfare_broker::{Room, SessionId};

impl State {
    /// Executes a control message, if it is for this shard: every shard of a node gets every control message for the
    /// node.
    pub(super) fn on_control(&mut self, message: Bytes) {
        match ControlMessage::decode(message) {
            Some(ControlMessage::Command(command)) if command.address.shard == self.me.0 => {
                self.on_command(command);
            }
            Some(ControlMessage::Reply { shard, ticket, reply }) if shard == self.me.0 => {
                self.posts.end_wait(ticket, Some(reply));
            }
            // The address names a shard that this node does not have. One shard replies for the node.
            Some(ControlMessage::Command(PostedCommands { address, back, .. }))
                if self.me.0 == 0 && usize::from(address.shard) >= self.node.inboxes.len() =>
            {
                self.send_reply(back, Err(ErrorCode::SessionGone));
            }
            Some(ControlMessage::Command(_) | ControlMessage::Reply { .. }) => {}
            Some(ControlMessage::Kick { room, user }) => self.kick(&room, &user),
            Some(ControlMessage::Disconnect { user }) => self.disconnect(&user),
            None => tracing::debug!("a control message of an unknown kind was ignored"),
        }
    }

    /// Takes a user's sessions out of a room.
    fn kick(&mut self, room: &Room, user: &str) {
        if let Ok(session) = user.parse() {
            self.node.leases.kick(Some(room), session);
            // One of the waiting polls may be this session's.
            let entry = self.rooms.find(room.as_str()).and_then(|index| self.rooms.get(index));
            entry.inspect(|entry| entry.wake_polls());
        }
        for session in self.sessions_of(user) {
            if self.leave(session, room.as_str()) {
                self.send(session.index, &Event::Left { id: None, room: room.as_str(), reason: Some("kicked") });
            }
        }
    }

    /// Ends a user's sessions.
    fn disconnect(&mut self, user: &str) {
        if let Ok(session) = user.parse() {
            self.node.leases.kick(None, session);
            self.rooms.all().for_each(RoomEntry::wake_polls);
        }
        for session in self.sessions_of(user) {
            self.end(session, CloseReason::Kicked, None);
        }
    }

    /// A user's sessions; an anonymous session is a user named by its id.
    fn sessions_of(&self, user: &str) -> Vec<SessionRef> {
        let anonymous: Option<SessionId> = user.parse().ok();
        let is_user = |session: &Session| match session.user() {
            Some(name) => name.as_str() == user,
            None => Some(session.id) == anonymous,
        };
        let open = self.outgoing.sessions.all_open();
        open.filter(|(_, conn)| is_user(&conn.session)).map(|(session, _)| session).collect()
    }
}
