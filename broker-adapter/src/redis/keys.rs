//! The names of keys and channels, and of Redis memories. Every name of a room contains its partition as a Redis Cluster hash tag, so all
//! keys of one script share a slot. All nodes of a cluster use these names, those of other versions too: neither the
//! names nor the hash ever change.
//!
//! ```text
//! <prefix>:{pNN}:c:<room>        channel
//! <prefix>:{pNN}:s:<room>        stream: id <offset>-0, field d = envelope tail
//! <prefix>:{pNN}:m:<room>        hash: e epoch, s last offset, g fence (the Redis memory that gave out the offsets)
//! <prefix>:{pNN}:i:<room> <key>  idempotency: the first publish's cursor (a room name holds no space)
//! <prefix>:{pNN}:pr:<room>       hash: session -> owner, announce flag, presence payload
//! <prefix>:{pNN}:pu:<room>       hash: u<user> sessions, U users, v version
//! <prefix>:{pNN}:rooms           sorted set: the partition's rooms that have members
//! <prefix>:{pNN}:nm:<owner>      sorted set: the owner's members in the partition, <session><room> -> end of the lease, or 0
//! <prefix>:nodes                 sorted set: owner -> last heartbeat; x<owner>: dead; s<owner>: swept
//! <prefix>:sweeper               the node that removes the members of dead owners
//! <prefix>:probe                 written to see whether Redis takes writes, like the meta and the stream of a room:
//! <prefix>:probe:m, :s           … and a channel <prefix>:probe
//! <prefix>:ctl                   channel: control messages to all nodes
//! <prefix>:node:<id>             channel: control messages to one node
//! ```
//! Redis keeps its databases' keys apart, but not their channels. So the names of channels begin with `<prefix>/<database>`,
//! or with the prefix alone in database 0.
//!
//! An owner is written in hexadecimal digits, so it begins with neither `x` nor `s`. In a cluster the last five have a
//! slot too: `<prefix>:{p00}:nodes`, `<prefix>:{p00}:sweeper`, and in each partition `<prefix>:{pNN}:probe…`, `<prefix>:{pNN}:ctl` and
//! `<prefix>:{pNN}:node:<id>`.

use crate::{IdempotencyKey, NodeId, Room};
use std::sync::Arc;

/// How many partitions there are; a partition's number is two hexadecimal digits.
pub(crate) const PARTITIONS: usize = 256;

/// The partition of the key that holds all heartbeats, in a cluster.
pub(crate) const HOME: Partition = Partition(0);

/// The owner of the sessions that are present by lease. Their lists are those of all nodes together.
pub(crate) const LEASES: NodeId = NodeId(0);

/// One of the 256 parts into which all rooms are divided, by the hash of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Partition(pub(crate) u8);

impl Partition {
    /// FNV-1a, 64 bits, folded to 8: the same in every version, on every platform and node.
    pub(crate) fn of(room: &Room) -> Self {
        Self(fnv(room.as_str().as_bytes()).to_be_bytes().into_iter().fold(0, |folded, byte| folded ^ byte))
    }

    /// The index of the Redis that has this partition, among several: the one with the highest score (rendezvous
    /// hashing). One Redis more takes its part from each of the others, and no other partition moves.
    pub(crate) fn choose(self, among: &[String]) -> usize {
        let score = |name: &String| {
            // FNV alone hardly mixes the last byte into the upper bits. These steps are the finalizer of MurmurHash3.
            let mut hash = fnv(&[name.as_bytes(), &[self.0]].concat());
            for factor in [0xFF51_AFD7_ED55_8CCD_u64, 0xC4CE_B9FE_1A85_EC53] {
                hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
            }
            hash ^ (hash >> 33)
        };
        (0..among.len()).max_by_key(|at| (score(&among[*at]), &among[*at])).unwrap_or(0)
    }

    /// The slot of its tag in a cluster: CRC-16/XMODEM of `pNN` (the CLUSTER KEYSLOT page of Redis).
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

/// What one of a room's keys or channels holds, by the letters in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part(&'static str);

impl Part {
    pub(crate) const CHANNEL: Self = Self("c");
    pub(crate) const STREAM: Self = Self("s");
    pub(crate) const META: Self = Self("m");
    pub(crate) const SESSIONS: Self = Self("pr");
    pub(crate) const USERS: Self = Self("pu");
}

/// Makes the names of keys and channels under one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: Arc<str>,
    /// The prefix of channels.
    channels: Arc<str>,
    is_cluster: bool,
}

impl Keys {
    /// In a cluster the names without a room have a slot too.
    pub(crate) fn new(prefix: &str, database: i64, is_cluster: bool) -> Self {
        // No prefix has a slash, so no two pairs of prefix and database share channels.
        let channels = if database == 0 { prefix.into() } else { format!("{prefix}/{database}").into() };
        Self { prefix: prefix.into(), channels, is_cluster }
    }

    pub(crate) fn of(&self, part: Part, room: &Room) -> String {
        let prefix = if part == Part::CHANNEL { &self.channels } else { &self.prefix };
        let mut name = tagged(prefix, Partition::of(room), room.as_str().len() + 4);
        name.push_str(part.0);
        name.push(':');
        name.push_str(room.as_str());
        name
    }

    pub(crate) fn idempotency(&self, room: &Room, key: &IdempotencyKey) -> String {
        let mut name = tagged(&self.prefix, Partition::of(room), room.as_str().len() + key.as_str().len() + 3);
        name.push_str("i:");
        name.push_str(room.as_str());
        name.push(' ');
        name.push_str(key.as_str());
        name
    }

    /// The set of the partition's rooms that have members.
    pub(crate) fn rooms(&self, partition: Partition) -> String {
        tagged(&self.prefix, partition, 5) + "rooms"
    }

    /// The set of an owner's members in the partition.
    pub(crate) fn members_of(&self, owner: NodeId, partition: Partition) -> String {
        format!("{}nm:{owner}", tagged(&self.prefix, partition, 20))
    }

    /// A key, which is only written, and a channel without subscribers: to see whether Redis takes writes.
    pub(crate) fn probe(&self, partition: Partition) -> [String; 2] {
        [&self.prefix, &self.channels].map(|prefix| self.in_partition(prefix, partition) + "probe")
    }

    /// The set of all owners with their heartbeats.
    pub(crate) fn nodes(&self) -> String {
        self.in_partition(&self.prefix, HOME) + "nodes"
    }

    /// The node that removes the members of dead owners.
    pub(crate) fn sweeper(&self) -> String {
        self.in_partition(&self.prefix, HOME) + "sweeper"
    }

    /// The channel of control messages to all nodes; a cluster has one in each partition.
    pub(crate) fn control(&self, partition: Partition) -> String {
        self.in_partition(&self.channels, partition) + "ctl"
    }

    /// The channel of control messages to one node; a cluster has one in each partition.
    pub(crate) fn control_to(&self, node: NodeId, partition: Partition) -> String {
        format!("{}node:{node}", self.in_partition(&self.channels, partition))
    }

    /// The channels over which a node receives control messages from a master that has these partitions.
    pub(crate) fn controls(&self, node: NodeId, partitions: &[Partition]) -> Vec<String> {
        let partitions = if self.is_cluster { partitions } else { &[HOME] };
        partitions.iter().flat_map(|partition| [self.control(*partition), self.control_to(node, *partition)]).collect()
    }

    /// The beginning of a name that contains its partition in a cluster only.
    fn in_partition(&self, prefix: &str, partition: Partition) -> String {
        if self.is_cluster { tagged(prefix, partition, 24) } else { format!("{prefix}:") }
    }

    /// The room whose channel this is; `None` for the channels of control messages.
    pub(crate) fn room_of<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        let rest = channel.strip_prefix(self.channels.as_bytes())?.strip_prefix(b":{p")?;
        std::str::from_utf8(rest.get(2..)?.strip_prefix(b"}:c:")?).ok()
    }
}

/// A prefix and a partition as a hash tag, with space for `more` bytes.
fn tagged(prefix: &str, partition: Partition, more: usize) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut name = String::with_capacity(prefix.len() + 8 + more);
    name.push_str(prefix);
    name.push_str(":{p");
    name.push(HEX[usize::from(partition.0 >> 4)] as char);
    name.push(HEX[usize::from(partition.0 & 15)] as char);
    name.push_str("}:");
    name
}

/// Names the Redis memory that gave out a room's offsets: the first characters of a server's `run_id`, which every
/// restart and failover changes. Stored with each room and compared before an offset is used, so that offsets of a lost
/// memory are never continued.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Fence(String);

impl Fence {
    /// Takes 16 of the 40 hexadecimal digits: enough to distinguish memories, and every room's meta holds a copy.
    pub(crate) fn new(run_id: &str) -> Self {
        Self(run_id.chars().take(16).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of two versions share a Redis during a deploy, so names never change.
    #[test]
    fn names_are_stable() {
        let keys = Keys::new("fanfare", 0, false);
        let room = Room::parse("chat:1").unwrap();
        assert_eq!(keys.of(Part::CHANNEL, &room), "fanfare:{p20}:c:chat:1");
        assert_eq!(keys.of(Part::USERS, &room), "fanfare:{p20}:pu:chat:1");
        let key = IdempotencyKey::parse("a b").unwrap();
        assert_eq!(keys.idempotency(&room, &key), "fanfare:{p20}:i:chat:1 a b");
        assert_eq!(keys.members_of(NodeId(7), Partition(0)), "fanfare:{p00}:nm:0000000000000007");
        assert_eq!(Partition::all().count(), PARTITIONS);
    }

    #[test]
    fn the_room_is_read_from_its_channel() {
        let keys = Keys::new("a:b", 0, false);
        let room = Room::parse("x:c:y").unwrap();
        assert_eq!(keys.room_of(keys.of(Part::CHANNEL, &room).as_bytes()), Some("x:c:y"));
        let mut others = vec![keys.of(Part::STREAM, &room), "a:b:{p".into()];
        others.extend(keys.controls(NodeId(1), &[HOME]));
        others.extend(Keys::new("a:b", 0, true).controls(NodeId(1), &[HOME, Partition(1)]));
        assert_eq!(others.len(), 2 + 2 + 4);
        for other in others {
            assert_eq!(keys.room_of(other.as_bytes()), None, "{other}");
        }
    }

    /// Redis has one space of channels for all databases.
    #[test]
    fn channels_of_two_databases_differ_and_keys_do_not() {
        let [zero, three] = [0, 3].map(|database| Keys::new("fanfare", database, false));
        let room = Room::parse("a").unwrap();
        assert_eq!(three.of(Part::CHANNEL, &room), zero.of(Part::CHANNEL, &room).replace("fanfare", "fanfare/3"));
        assert_eq!(three.controls(NodeId(1), &[]), ["fanfare/3:ctl", "fanfare/3:node:0000000000000001"]);
        for keys in [&zero, &three] {
            assert_eq!(keys.of(Part::META, &room), zero.of(Part::META, &room));
            assert_eq!(keys.room_of(keys.of(Part::CHANNEL, &room).as_bytes()), Some("a"));
        }
        assert_eq!(zero.room_of(three.of(Part::CHANNEL, &room).as_bytes()), None);
    }

    #[test]
    fn one_more_redis_takes_its_part_and_no_other_partition_moves() {
        let three = ["a:6379", "b:6379", "c:6379"].map(String::from);
        let four = [&three[..], &["d:6379".to_owned()]].concat();
        let mut counts = [0; 4];
        for partition in Partition::all() {
            let (was, is) = (partition.choose(&three), partition.choose(&four));
            assert!(is == was || is == 3, "{partition:?} went from {was} to {is}");
            counts[is] += 1;
        }
        // 64 each on average, with a standard deviation of 7.
        assert!(counts.iter().all(|count| (43..=85).contains(count)), "{counts:?}");
        let turned = ["c:6379", "a:6379", "b:6379"].map(String::from);
        assert!(Partition::all().all(|p| turned[p.choose(&turned)] == three[p.choose(&three)]), "whatever the order");
    }
}
