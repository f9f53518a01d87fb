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
//! <prefix>:ctl, <prefix>:node:<id>   channels for controls
//! ```
//! In a cluster these three have a slot of their own too: `<prefix>:{p00}:nodes`, and one pair of channels per partition,
//! `<prefix>:{pNN}:ctl` and `<prefix>:{pNN}:node:<id>`.

use crate::{IdempotencyKey, NodeId, Room};
use std::sync::Arc;

/// How many partitions there are; a partition's number is two hexadecimal digits.
pub(crate) const PARTITIONS: usize = 256;

/// Where nodes say that they live, in a cluster.
pub(crate) const HOME: Partition = Partition(0);

/// One partition of the rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Partition(pub(crate) u8);

impl Partition {
    /// FNV-1a, 64 bits, folded: stable across versions, platforms and nodes.
    pub(crate) fn of(room: &Room) -> Self {
        Self(fnv(room.as_str().as_bytes()).to_be_bytes().into_iter().fold(0, |folded, byte| folded ^ byte))
    }

    /// Which of several Redis has it: the one of the highest score (rendezvous hashing), so that one more takes its
    /// share from each of the others and nothing else moves.
    pub(crate) fn place(self, among: &[String]) -> usize {
        let score = |name: &String| {
            // FNV alone hardly mixes the last byte into the upper bits; this is the finish of MurmurHash3.
            let mut hash = fnv(&[name.as_bytes(), &[self.0]].concat());
            for factor in [0xFF51_AFD7_ED55_8CCD_u64, 0xC4CE_B9FE_1A85_EC53] {
                hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
            }
            hash ^ (hash >> 33)
        };
        (0..among.len()).max_by_key(|at| (score(&among[*at]), &among[*at])).unwrap_or(0)
    }

    /// The slot of its tag in a cluster: CRC-16/XMODEM of `pNN`.
    pub(crate) fn slot(self) -> u16 {
        let tag = format!("p{:02x}", self.0);
        let crc = tag.bytes().fold(0_u16, |crc, byte| {
            (0..8).fold(
                crc ^ (u16::from(byte) << 8),
                |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
            )
        });
        crc % 16384
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// What a room's key holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
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
pub(crate) struct Names {
    prefix: Arc<str>,
    cluster: bool,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), cluster: false }
    }

    /// In a cluster every name has a slot.
    pub(crate) fn in_cluster(prefix: &str) -> Self {
        Self { prefix: prefix.into(), cluster: true }
    }

    pub(crate) fn of(&self, part: Part, room: &Room) -> String {
        let mut name = self.tagged(Partition::of(room), room.as_str().len() + 4);
        name.push_str(part.letters());
        name.push(':');
        name.push_str(room.as_str());
        name
    }

    pub(crate) fn idempotency(&self, room: &Room, key: &IdempotencyKey) -> String {
        let mut name = self.tagged(Partition::of(room), room.as_str().len() + key.as_str().len() + 3);
        name.push_str("i:");
        name.push_str(room.as_str());
        name.push(' ');
        name.push_str(key.as_str());
        name
    }

    pub(crate) fn rooms(&self, partition: Partition) -> String {
        self.tagged(partition, 5) + "rooms"
    }

    pub(crate) fn rooms_of(&self, owner: NodeId, partition: Partition) -> String {
        format!("{}nr:{owner}", self.tagged(partition, 20))
    }

    pub(crate) fn nodes(&self) -> String {
        self.in_partition(HOME) + "nodes"
    }

    /// The channel of controls to all; in a cluster there is one in each partition.
    pub(crate) fn control(&self, partition: Partition) -> String {
        self.in_partition(partition) + "ctl"
    }

    /// The channel of controls to one node; in a cluster there is one in each partition.
    pub(crate) fn node(&self, node: NodeId, partition: Partition) -> String {
        format!("{}node:{node}", self.in_partition(partition))
    }

    /// The channels on which a node hears controls over a Redis that has these partitions.
    pub(crate) fn controls(&self, node: NodeId, partitions: &[Partition]) -> Vec<String> {
        let heard = if self.cluster { partitions } else { &[HOME] };
        heard.iter().flat_map(|partition| [self.control(*partition), self.node(node, *partition)]).collect()
    }

    /// What names of a partition begin with that need it only in a cluster.
    fn in_partition(&self, partition: Partition) -> String {
        if self.cluster { self.tagged(partition, 24) } else { format!("{}:", self.prefix) }
    }

    /// The room whose channel this is; `None` for the channels of controls.
    pub(crate) fn room_of<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
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
        let mut others = vec![names.of(Part::Stream, &room), "a:b:{p".into()];
        others.extend(names.controls(NodeId(1), &[HOME]));
        others.extend(Names::in_cluster("a:b").controls(NodeId(1), &[HOME, Partition(1)]));
        assert_eq!(others.len(), 2 + 2 + 4);
        for other in others {
            assert_eq!(names.room_of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn one_more_redis_takes_its_share_and_nothing_else_moves() {
        let three = ["a:6379", "b:6379", "c:6379"].map(String::from);
        let four = [&three[..], &["d:6379".to_owned()]].concat();
        let mut shares = [0; 4];
        for partition in Partition::all() {
            let (was, is) = (partition.place(&three), partition.place(&four));
            assert!(is == was || is == 3, "{partition:?} went from {was} to {is}");
            shares[is] += 1;
        }
        // 64 each, give or take: the standard deviation is 7.
        assert!(shares.iter().all(|share| (43..=85).contains(share)), "{shares:?}");
        let turned = ["c:6379", "a:6379", "b:6379"].map(String::from);
        assert!(Partition::all().all(|p| turned[p.place(&turned)] == three[p.place(&three)]), "in any order");
    }
}
