//! Notes between nodes and shards: whom an operator wants out, and posted commands with their answers. Sent by `api` and
//! `posts` through the broker or into a shard's inbox; each shard does what is for it.

use super::{Shard, State, posts::Answer};
use crate::{close::CloseReason, error::ErrorCode, event::Event, session::PostAddress};
use bytes::{Buf as _, Bytes};
use fanfare_broker::{NodeId, Room, SessionId};
use std::rc::Rc;

/// A note; as bytes its kind comes first.
#[derive(Debug)]
pub(crate) enum ControlMessage {
    /// All of a user's sessions leave a room.
    Kick { room: Room, user: String },
    /// All of a user's sessions end.
    Disconnect { user: String },
    /// What was posted for a session.
    Command(Command),
    /// What became of that.
    Answer { shard: u16, ticket: u64, answer: Answer },
}

/// Commands for one session, and where their answer goes.
#[derive(Debug)]
pub(crate) struct Command {
    pub(super) address: PostAddress,
    pub(super) back: Return,
    /// One command or an array of some, as JSON.
    pub(super) body: Bytes,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Return {
    pub(super) node: NodeId,
    pub(super) shard: u16,
    pub(super) ticket: u64,
}

const KICK: u8 = 1;
const DISCONNECT: u8 = 2;
const COMMAND: u8 = 3;
const ANSWER: u8 = 4;

/// What an answer begins with: done, there is no such session, too much is under way.
const DONE: u8 = 0;
const GONE: u8 = 1;
const OVERLOADED: u8 = 2;

const ADDRESS_BYTES: usize = 36;
const RETURN_BYTES: usize = 18;

impl ControlMessage {
    /// The bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, room, user) = match self {
            Self::Kick { room, user } => (KICK, room.as_str(), user),
            Self::Disconnect { user } => (DISCONNECT, "", user),
            Self::Command(Command { address, back, body }) => {
                let (node, shard) = (back.node.0.to_be_bytes(), back.shard.to_be_bytes());
                let back = [&node[..], &shard, &back.ticket.to_be_bytes()].concat();
                return [&[COMMAND], &address.bytes()[..], &back, body].concat().into();
            }
            Self::Answer { shard, ticket, answer } => {
                let (word, body) = match answer {
                    Ok(body) => (DONE, &body[..]),
                    Err(ErrorCode::SessionGone) => (GONE, &[][..]),
                    Err(_) => (OVERLOADED, &[][..]),
                };
                return [&[ANSWER], &shard.to_be_bytes()[..], &ticket.to_be_bytes(), &[word], body].concat().into();
            }
        };
        // A room's name has at most 255 bytes.
        [&[kind, room.len() as u8], room.as_bytes(), user.as_bytes()].concat().into()
    }

    /// Reads a note; `None` for kinds that a newer node may send.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        match bytes.try_get_u8().ok()? {
            KICK => {
                let len = usize::from(bytes.try_get_u8().ok()?);
                let (room, user) = bytes.split_at_checked(len)?;
                let room = Room::parse(std::str::from_utf8(room).ok()?).ok()?;
                Some(Self::Kick { room, user: String::from_utf8(user.to_vec()).ok()? })
            }
            DISCONNECT => {
                let user = bytes.strip_prefix(b"\0")?;
                Some(Self::Disconnect { user: String::from_utf8(user.to_vec()).ok()? })
            }
            COMMAND if bytes.len() >= ADDRESS_BYTES + RETURN_BYTES => {
                let address = PostAddress::read(&bytes.split_to(ADDRESS_BYTES))?;
                let (node, shard, ticket) = (bytes.get_u64(), bytes.get_u16(), bytes.get_u64());
                let back = Return { node: NodeId(node), shard, ticket };
                Some(Self::Command(Command { address, back, body: bytes }))
            }
            ANSWER => {
                let (shard, ticket) = (bytes.try_get_u16().ok()?, bytes.try_get_u64().ok()?);
                let answer = match bytes.try_get_u8().ok()? {
                    DONE => Ok(bytes),
                    GONE => Err(ErrorCode::SessionGone),
                    _ => Err(ErrorCode::BackplaneOverloaded),
                };
                Some(Self::Answer { shard, ticket, answer })
            }
            _ => None,
        }
    }
}

impl Shard {
    pub(super) fn on_control(self: &Rc<Self>, state: &mut State, message: Bytes) {
        match ControlMessage::decode(message) {
            // A node's notes reach all of its shards.
            Some(ControlMessage::Command(command)) if command.address.shard == self.me.0 => {
                self.on_command(state, command)
            }
            Some(ControlMessage::Answer { shard, ticket, answer }) if shard == self.me.0 => {
                self.on_answer(state, ticket, answer);
            }
            // No shard of this node has such an address: one of them says so.
            Some(ControlMessage::Command(Command { address, back, .. }))
                if self.me.0 == 0 && usize::from(address.shard) >= self.node.inboxes.len() =>
            {
                self.send_answer(back, Err(ErrorCode::SessionGone));
            }
            Some(ControlMessage::Command(_) | ControlMessage::Answer { .. }) => {}
            Some(ControlMessage::Kick { room, user }) => {
                if let Ok(session) = user.parse() {
                    self.node.kick_poller(Some(&room), session);
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
                    self.node.kick_poller(None, session);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Secret;

    fn again(message: &ControlMessage) -> ControlMessage {
        ControlMessage::decode(message.encode()).unwrap()
    }

    #[test]
    fn bytes_and_back() {
        let room = Room::parse("chat:1").unwrap();
        assert!(matches!(again(&ControlMessage::Kick { room: room.clone(), user: "ü".into() }),
            ControlMessage::Kick { room: r, user } if r == room && user == "ü"));
        assert!(
            matches!(again(&ControlMessage::Disconnect { user: "u42".into() }), ControlMessage::Disconnect { user } if user == "u42")
        );
        let address = PostAddress { node: NodeId(1), shard: 2, place: 3, secret: Secret::random() };
        let back = Return { node: NodeId(4), shard: 5, ticket: 6 };
        let command = ControlMessage::Command(Command { address, back, body: Bytes::from_static(b"{}") });
        assert!(matches!(again(&command), ControlMessage::Command(c)
            if c.back == back && c.body == "{}" && c.address.secret.is(&address.secret) && c.address.shard == 2));
        for answer in [Ok(Bytes::from_static(b"[]")), Err(ErrorCode::SessionGone), Err(ErrorCode::BackplaneOverloaded)]
        {
            let message = ControlMessage::Answer { shard: 1, ticket: 2, answer: answer.clone() };
            assert!(
                matches!(again(&message), ControlMessage::Answer { shard: 1, ticket: 2, answer: a } if a == answer)
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_not_read() {
        let bad: [&'static [u8]; 9] = [
            b"",
            b"\x01",
            b"\x01\x09abc",
            b"\x01\x00u",
            b"\x09\x00u",
            b"\x02\x00\xff",
            b"\x02",
            b"\x03abc",
            b"\x04abc",
        ];
        for bytes in bad {
            assert!(ControlMessage::decode(Bytes::from_static(bytes)).is_none(), "{bytes:?}");
        }
    }
}
