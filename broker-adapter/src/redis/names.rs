//! What keys and channels are called. Every name of a room carries its partition as a Redis Cluster hash tag, so all
//! keys of one script share a slot. Nodes of one cluster must agree on this file: the hash never changes.
//!
//! ```text
//! <prefix>:{pNN}:c:<room>        channel
//! <prefix>:{pNN}:s:<room>        stream: id <offset>-0, field d = envelope tail
//! <prefix>:{pNN}:m:<room>        hash: e epoch, s last offset, g fence (whose memory gave out the offsets)
//! <prefix>:{pNN}:i:<room> <key>  idempotency: the first publish's cursor (a room name holds no space)
//! <prefix>:{pNN}:pr:<room>       hash: session -> owner, announce flag, presence payload
//! <prefix>:{pNN}:pu:<room>       hash: u<user> sessions, n<owner> sessions, U users, v version
//! <prefix>:{pNN}:rooms           sorted set: rooms of the partition with members
//! <prefix>:{pNN}:nr:<owner>      set: the partition's rooms in which the owner has sessions
//! <prefix>:nodes                 sorted set: owner -> last heartbeat; x<owner> being swept, s<owner> swept (an owner is hexadecimal)
//! <prefix>:ctl, <prefix>:node:<id>   channels for notes
//! ```

use crate::{IdempotencyKey, NodeId, Room};
use std::sync::Arc;

/// How many partitions there are; a partition's number is two hexadecimal digits.
pub(super) const PARTITIONS: usize = 256;

/// One partition of the rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Partition(pub(super) u8);

impl Partition {
    /// FNV-1a, 64 bits, folded: stable across versions, platforms and nodes.
    pub(super) fn of(room: &Room) -> Self {
        let hash = room
            .as_str()
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        Self(hash.to_be_bytes().into_iter().fold(0, |folded, byte| folded ^ byte))
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }
}

/// What a room's key holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Channel,
    Stream,
    Meta,
    Sessions,
    Users,
}

impl Part {
    fn letters(self) -> &'static str {
        match self {
            Self::Channel => "c",
            Self::Stream => "s",
            Self::Meta => "m",
            Self::Sessions => "pr",
            Self::Users => "pu",
        }
    }
}

/// Makes names under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: Arc<str>,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    pub(super) fn of(&self, part: Part, room: &Room) -> String {
        let mut name = self.tagged(Partition::of(room), room.as_str().len() + 4);
        name.push_str(part.letters());
        name.push(':');
        name.push_str(room.as_str());
        name
    }

    pub(super) fn idempotency(&self, room: &Room, key: &IdempotencyKey) -> String {
        let mut name = self.tagged(Partition::of(room), room.as_str().len() + key.as_str().len() + 3);
        name.push_str("i:");
        name.push_str(room.as_str());
        name.push(' ');
        name.push_str(key.as_str());
        name
    }

    pub(super) fn rooms(&self, partition: Partition) -> String {
        self.tagged(partition, 5) + "rooms"
    }

    pub(super) fn rooms_of(&self, owner: NodeId, partition: Partition) -> String {
        format!("{}nr:{owner}", self.tagged(partition, 20))
    }

    pub(super) fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    pub(super) fn control(&self) -> String {
        format!("{}:ctl", self.prefix)
    }

    pub(super) fn node(&self, node: NodeId) -> String {
        format!("{}:node:{node}", self.prefix)
    }

    /// The room whose channel this is; `None` for the channels of notes.
    pub(super) fn room_of<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        let rest = channel.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b":{p")?;
        std::str::from_utf8(rest.get(2..)?.strip_prefix(b"}:c:")?).ok()
    }

    fn tagged(&self, partition: Partition, more: usize) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut name = String::with_capacity(self.prefix.len() + 8 + more);
        name.push_str(&self.prefix);
        name.push_str(":{p");
        name.push(HEX[usize::from(partition.0 >> 4)] as char);
        name.push(HEX[usize::from(partition.0 & 15)] as char);
        name.push_str("}:");
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of two versions share a Redis during a deploy: names do not move.
    #[test]
    fn names_are_stable() {
        let names = Names::new("fanfare");
        let room = Room::parse("chat:1").unwrap();
        assert_eq!(names.of(Part::Channel, &room), "fanfare:{p20}:c:chat:1");
        assert_eq!(names.of(Part::Users, &room), "fanfare:{p20}:pu:chat:1");
        let key = IdempotencyKey::parse("a b").unwrap();
        assert_eq!(names.idempotency(&room, &key), "fanfare:{p20}:i:chat:1 a b");
        assert_eq!(names.rooms_of(NodeId(7), Partition(0)), "fanfare:{p00}:nr:0000000000000007");
        assert_eq!(Partition::all().count(), PARTITIONS);
    }

    #[test]
    fn a_channel_tells_its_room() {
        let names = Names::new("a:b");
        let room = Room::parse("x:c:y").unwrap();
        assert_eq!(names.room_of(names.of(Part::Channel, &room).as_bytes()), Some("x:c:y"));
        for other in [names.control(), names.node(NodeId(1)), names.of(Part::Stream, &room), "a:b:{p".into()] {
            assert_eq!(names.room_of(other.as_bytes()), None, "{other}");
        }
    }
}
