//! Control messages between nodes and shards: which user to disconnect, and posted commands with their replies. Made by
//! `api` and `shard`, carried by the broker or a shard's inbox, and applied by each shard.

use super::{
    address::PostAddress,
    error::{ErrorCode, Refusal},
};
use bytes::{Buf as _, Bytes};
use fanfare_broker::{NodeId, Room};
use serde_json::value::RawValue;

/// The reply to a post: the JSON text, or why the commands were not done.
pub(crate) type CommandReply = Result<Bytes, ErrorCode>;

/// A control message. Its first byte is its kind.
#[derive(Debug)]
pub(crate) enum ControlMessage {
    /// All sessions of a user leave a room.
    Kick { room: Room, user: String },
    /// All sessions of a user are closed.
    Disconnect { user: String },
    /// Commands that were posted for a session.
    Command(PostedCommands),
    /// The reply to posted commands.
    Reply { shard: u16, ticket: u64, reply: CommandReply },
}

/// Posted commands of one session, and where their reply goes.
#[derive(Debug)]
pub(crate) struct PostedCommands {
    pub(crate) address: PostAddress,
    pub(crate) back: ReplyAddress,
    /// The body of the post: JSON, one command or an array of commands.
    pub(crate) body: Bytes,
}

/// Which shard waits for a reply, and under which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyAddress {
    pub(crate) node: NodeId,
    pub(crate) shard: u16,
    pub(crate) ticket: u64,
}

const KICK: u8 = 1;
const DISCONNECT: u8 = 2;
const COMMAND: u8 = 3;
const REPLY: u8 = 4;

/// The first byte of a reply: done; the session has ended; too many posts are in progress.
const DONE: u8 = 0;
const GONE: u8 = 1;
const OVERLOADED: u8 = 2;

const ADDRESS_BYTES: usize = 36;
const RETURN_BYTES: usize = 18;

impl ControlMessage {
    /// The bytes that travel between nodes.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, room, user) = match self {
            Self::Kick { room, user } => (KICK, room.as_str(), user),
            Self::Disconnect { user } => (DISCONNECT, "", user),
            Self::Command(PostedCommands { address, back, body }) => {
                let (node, shard) = (back.node.0.to_be_bytes(), back.shard.to_be_bytes());
                let back = [&node[..], &shard, &back.ticket.to_be_bytes()].concat();
                return [&[COMMAND], &address.bytes()[..], &back, body].concat().into();
            }
            Self::Reply { shard, ticket, reply } => {
                let (word, body) = match reply {
                    Ok(body) => (DONE, &body[..]),
                    Err(ErrorCode::SessionGone) => (GONE, &[][..]),
                    Err(_) => (OVERLOADED, &[][..]),
                };
                return [&[REPLY], &shard.to_be_bytes()[..], &ticket.to_be_bytes(), &[word], body].concat().into();
            }
        };
        // A room's name has at most 255 bytes.
        [&[kind, room.len() as u8], room.as_bytes(), user.as_bytes()].concat().into()
    }

    /// Reads a control message; `None` for kinds that only a newer version knows.
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
                let back = ReplyAddress { node: NodeId(node), shard, ticket };
                Some(Self::Command(PostedCommands { address, back, body: bytes }))
            }
            REPLY => {
                let (shard, ticket) = (bytes.try_get_u16().ok()?, bytes.try_get_u64().ok()?);
                let reply = match bytes.try_get_u8().ok()? {
                    DONE => Ok(bytes),
                    GONE => Err(ErrorCode::SessionGone),
                    _ => Err(ErrorCode::BackplaneOverloaded),
                };
                Some(Self::Reply { shard, ticket, reply })
            }
            _ => None,
        }
    }
}

/// The most commands in one post.
pub(crate) const COMMANDS_MAX: usize = 100;

/// The commands of a post as JSON texts, and whether the body is an array.
/// An error: the body as a whole is malformed, or has too many commands.
pub(crate) fn commands(body: &str) -> Result<(Vec<&RawValue>, bool), Refusal> {
    let is_array = body.trim_start().starts_with('[');
    let commands: Result<Vec<&RawValue>, _> =
        if is_array { serde_json::from_str(body) } else { serde_json::from_str(body).map(|one| vec![one]) };
    let commands = commands.map_err(|why| Refusal::bad_request(format!("the body is not JSON: {why}")))?;
    if !is_array && !body.trim_start().starts_with('{') {
        return Err(Refusal::bad_request("the body is neither a command nor an array of commands"));
    }
    if !(1..=COMMANDS_MAX).contains(&commands.len()) {
        return Err(Refusal::bad_request(format!("a post has 1 to {COMMANDS_MAX} commands")));
    }
    Ok((commands, is_array))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::address::Secret;

    fn again(message: &ControlMessage) -> ControlMessage {
        ControlMessage::decode(message.encode()).unwrap()
    }

    #[test]
    fn every_kind_is_read_back_as_it_was_written() {
        let room = Room::parse("chat:1").unwrap();
        assert!(matches!(again(&ControlMessage::Kick { room: room.clone(), user: "ü".into() }),
            ControlMessage::Kick { room: r, user } if r == room && user == "ü"));
        assert!(
            matches!(again(&ControlMessage::Disconnect { user: "u42".into() }), ControlMessage::Disconnect { user } if user == "u42")
        );
        let address = PostAddress { node: NodeId(1), shard: 2, slot: 3, secret: Secret::random() };
        let back = ReplyAddress { node: NodeId(4), shard: 5, ticket: 6 };
        let command = ControlMessage::Command(PostedCommands { address, back, body: Bytes::from_static(b"{}") });
        assert!(matches!(again(&command), ControlMessage::Command(c)
            if c.back == back && c.body == "{}" && c.address.secret.is(&address.secret) && c.address.shard == 2));
        for reply in [Ok(Bytes::from_static(b"[]")), Err(ErrorCode::SessionGone), Err(ErrorCode::BackplaneOverloaded)] {
            let message = ControlMessage::Reply { shard: 1, ticket: 2, reply: reply.clone() };
            assert!(matches!(again(&message), ControlMessage::Reply { shard: 1, ticket: 2, reply: a } if a == reply));
        }
    }

    #[test]
    fn malformed_and_unknown_messages_are_not_read() {
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

    #[test]
    fn a_post_is_one_command_or_an_array_of_commands() {
        assert_eq!(commands(r#" {"type":"ping"} "#).map(|(c, array)| (c.len(), array)).unwrap(), (1, false));
        assert_eq!(commands(r#"[{"a":1},{"b":2}]"#).map(|(c, array)| (c.len(), array)).unwrap(), (2, true));
        let many = format!("[{}1]", "1,".repeat(COMMANDS_MAX));
        for wrong in ["", "[]", "{", "{}{}", "7", "null", "\"a\"", &many] {
            assert!(commands(wrong).is_err(), "{wrong}");
        }
    }
}
