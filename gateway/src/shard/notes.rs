//! Notes between nodes: whom an operator wants out. Sent by `api` through the broker, done by every shard.

use super::{Shard, State};
use crate::{close::CloseReason, event::Event, session::SessionId};
use bytes::Bytes;
use fanfare_broker::Room;

/// A note, as bytes: kind, length of the room's name, room, user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// All of a user's sessions leave a room.
    Kick { room: Room, user: String },
    /// All of a user's sessions end.
    Disconnect { user: String },
}

const KICK: u8 = 1;
const DISCONNECT: u8 = 2;

impl Note {
    /// The bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, room, user) = match self {
            Self::Kick { room, user } => (KICK, room.as_str(), user),
            Self::Disconnect { user } => (DISCONNECT, "", user),
        };
        // A room's name has at most 255 bytes.
        [&[kind, room.len() as u8], room.as_bytes(), user.as_bytes()].concat().into()
    }

    /// Reads a note; `None` for kinds that a newer node may send.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[kind, len], rest) = bytes.split_first_chunk()?;
        let (room, user) = rest.split_at_checked(usize::from(len))?;
        let user = String::from_utf8(user.to_vec()).ok()?;
        match kind {
            KICK => Some(Self::Kick { room: Room::parse(std::str::from_utf8(room).ok()?).ok()?, user }),
            DISCONNECT => Some(Self::Disconnect { user }),
            _ => None,
        }
    }
}

impl Shard {
    pub(super) fn on_note(&self, state: &mut State, note: &[u8]) {
        match Note::decode(note) {
            Some(Note::Kick { room, user }) => {
                for who in sessions_of(state, &user) {
                    if self.leave(state, who, room.as_str()) {
                        self.send(state, who.index, &Event::Left { id: None, room: &room, reason: Some("kicked") });
                    }
                }
            }
            Some(Note::Disconnect { user }) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let room = Room::parse("chat:1").unwrap();
        for note in [Note::Kick { room, user: "ü".into() }, Note::Disconnect { user: "u42".into() }] {
            assert_eq!(Note::decode(&note.encode()), Some(note));
        }
        for bad in [&b""[..], b"\x01", b"\x01\x09abc", b"\x01\x00u", b"\x07\x00u", b"\x02\x00\xff"] {
            assert_eq!(Note::decode(bad), None, "{bad:?}");
        }
    }
}
