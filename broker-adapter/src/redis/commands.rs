//! The commands that the broker sends to Redis, and how the replies of its scripts are read. Sends nothing itself.

use crate::{
    Cursor, Epoch, IdempotencyKey, MessageId, NodeId, Offset, Publish, Published, Retention, Room, SessionId, envelope,
    envelope::EnvelopeKind,
    redis::{Fence, Keys, Membership, Messages, Part, Partition, PendingPublish, PresenceChange, Scripts},
};
use bytes::BytesMut;
use redis::{Cmd, FromRedisValue, Value};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long a room's meta is kept after its last message or join, at least. Until then cursors of the room are valid.
const META_TTL: Duration = Duration::from_secs(24 * 3600);
/// A room's presence versions begin with the current time in milliseconds times this number. So they go on growing
/// after Redis has lost the last one, as long as a room has at most a million changes in a second.
const VERSIONS_PER_MS: u64 = 1000;

/// Which members of an owner are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// All: the owner is dead.
    All,
    /// Those whose leases have ended.
    Ended,
}

/// The times that heartbeats need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeartbeatTimes {
    /// An owner without a heartbeat for this long is dead.
    pub(crate) dead_after: Duration,
    /// For how long the claim to sweep holds without another heartbeat.
    pub(crate) claim: Duration,
}

/// Builds the commands of one node.
#[derive(Debug, Clone)]
pub(crate) struct CommandBuilder {
    pub(crate) keys: Keys,
    pub(crate) node: NodeId,
    pub(crate) scripts: Arc<Scripts>,
}

impl CommandBuilder {
    /// The command that publishes messages of one room.
    pub(crate) fn publish(&self, fence: &Fence, messages: &Messages) -> Cmd {
        let first = &messages.first.publish;
        let tails = messages.iter().map(|PendingPublish { publish, number, .. }| {
            let id = MessageId { node: self.node, number: *number };
            let mut tail = BytesMut::new();
            envelope::put_tail(&mut tail, id, publish.ts_ms, publish.author, &publish.payload);
            tail
        });
        let kind = if messages.len() == 1 { EnvelopeKind::Message } else { EnvelopeKind::Messages };
        let Some(retention) = first.retention else {
            return self.publish_without_history(first, &envelope::messages_without_cursor(kind, tails));
        };
        let keys = 2 + usize::from(first.key.is_some());
        let mut cmd = self.scripts.publish.call(keys, 8 + messages.len());
        cmd.arg(self.keys.of(Part::META, &first.room)).arg(self.keys.of(Part::STREAM, &first.room));
        if let Some(key) = &first.key {
            cmd.arg(self.keys.idempotency(&first.room, key));
        }
        cmd.arg(self.keys.of(Part::CHANNEL, &first.room))
            .arg(&envelope::head(kind, true)[..])
            .arg(fence.as_str())
            .arg(&Epoch::random().as_bytes()[..])
            .arg(retention.messages)
            .arg(millis(retention.ttl))
            .arg(meta_ttl(retention))
            .arg(millis(IdempotencyKey::TTL));
        for tail in tails {
            cmd.arg(&tail[..]);
        }
        cmd
    }

    fn publish_without_history(&self, first: &Publish, message: &[u8]) -> Cmd {
        let channel = self.keys.of(Part::CHANNEL, &first.room);
        let Some(key) = &first.key else {
            return self.send(&channel, message);
        };
        let mut cmd = self.scripts.publish_once.call(1, 3);
        cmd.arg(self.keys.idempotency(&first.room, key)).arg(channel).arg(message).arg(millis(IdempotencyKey::TTL));
        cmd
    }

    /// The commands that together show whether Redis takes writes: one that needs memory (a script that has begun with a
    /// deletion is excused), and a publish, with all that this node has to have the right to. No node reads them.
    pub(crate) fn write_probes(&self, fence: &Fence, partition: Partition) -> [Cmd; 2] {
        const TTL_MS: u64 = 1000;
        let [key, channel] = self.keys.probe(partition);
        let mut set = redis::cmd("SET");
        set.arg(&key).arg("").arg("PX").arg(TTL_MS);
        let mut publish = self.scripts.publish.call(2, 9);
        publish.arg(format!("{key}:m")).arg(format!("{key}:s")).arg(channel).arg("").arg(fence.as_str());
        publish.arg(&Epoch::random().as_bytes()[..]).arg(1).arg(&[TTL_MS; 3]).arg("");
        [set, publish]
    }

    /// The command that sends bytes to the current subscribers of a channel.
    pub(crate) fn send(&self, channel: &str, bytes: &[u8]) -> Cmd {
        let mut cmd = Cmd::with_capacity(3, 32 + channel.len() + bytes.len());
        cmd.arg(if self.scripts.is_sharded { "SPUBLISH" } else { "PUBLISH" }).arg(channel).arg(bytes);
        cmd
    }

    /// The command that reads a room's head. It begins a new epoch if Redis has no room of that name under this fence.
    pub(crate) fn head(&self, fence: &Fence, room: &Room, retention: Retention) -> Cmd {
        let mut cmd = self.scripts.head.call(2, 3);
        cmd.arg(self.keys.of(Part::META, room))
            .arg(self.keys.of(Part::STREAM, room))
            .arg(fence.as_str())
            .arg(&Epoch::random().as_bytes()[..])
            .arg(meta_ttl(retention));
        cmd
    }

    /// The command that reads the version of a room's presence.
    pub(crate) fn presence_version(&self, room: &Room) -> Cmd {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.of(Part::USERS, room)).arg("v");
        cmd
    }

    /// The command that records that a session enters or leaves a room.
    pub(crate) fn presence(&self, change: &PresenceChange) -> Cmd {
        let Membership { room, session } = &change.membership;
        let partition = Partition::of(room);
        let now = now_ms();
        let mut tail = BytesMut::new();
        let id = MessageId { node: self.node, number: 0 };
        envelope::put_tail(&mut tail, id, now, Some(*session), &[]);
        let (verb, payload, announce_leave, lease) = match &change.enter {
            Some(entry) => ("enter", &entry.payload[..], entry.announce_leave, entry.lease),
            None => ("leave", &[][..], true, None),
        };
        let mut cmd = self.scripts.presence.call(4, 13);
        cmd.arg(self.keys.of(Part::SESSIONS, room))
            .arg(self.keys.of(Part::USERS, room))
            .arg(self.keys.rooms(partition))
            .arg(self.keys.members_of(change.owner, partition))
            .arg(verb)
            .arg(&session.0[..])
            .arg(&change.owner.0.to_be_bytes()[..])
            .arg(payload)
            .arg(u8::from(announce_leave))
            .arg(u8::from(change.announce))
            .arg(self.keys.of(Part::CHANNEL, room))
            .arg(&envelope::head(EnvelopeKind::Joined, false)[..])
            .arg(&envelope::head(EnvelopeKind::Left, false)[..])
            .arg(&tail[..])
            .arg(room.as_str())
            .arg(now * VERSIONS_PER_MS)
            .arg(lease.map_or(0, millis));
        cmd
    }

    /// The command that removes members of an owner if they are over. All are in rooms of one partition.
    pub(crate) fn sweep(&self, owner: NodeId, over: Over, partition: Partition, members: &[Membership]) -> Cmd {
        let now = now_ms();
        let mut tail = BytesMut::new();
        envelope::put_tail(&mut tail, MessageId { node: self.node, number: 0 }, now, None, &[]);
        tail.truncate(tail.len() - SessionId::BYTES);
        let mut cmd = self.scripts.sweep.call(2 + 2 * members.len(), 5 + 3 * members.len());
        cmd.arg(self.keys.members_of(owner, partition)).arg(self.keys.rooms(partition));
        for Membership { room, .. } in members {
            cmd.arg(self.keys.of(Part::SESSIONS, room)).arg(self.keys.of(Part::USERS, room));
        }
        cmd.arg(&owner.0.to_be_bytes()[..])
            .arg(if over == Over::All { "all" } else { "ended" })
            .arg(&envelope::head(EnvelopeKind::Left, false)[..])
            .arg(&tail[..])
            .arg(now * VERSIONS_PER_MS);
        for Membership { room, session } in members {
            cmd.arg(&session.0[..]).arg(room.as_str()).arg(self.keys.of(Part::CHANNEL, room));
        }
        cmd
    }

    /// The command that removes from an owner's list what is no member.
    pub(crate) fn unlist(&self, owner: NodeId, partition: Partition, unreadable: &[Vec<u8>]) -> Cmd {
        let mut cmd = redis::cmd("ZREM");
        cmd.arg(self.keys.members_of(owner, partition)).arg(unreadable);
        cmd
    }

    /// The command that records a heartbeat of `owner`, reports the dead owners that this node has `swept`, and claims
    /// that this node is the one that sweeps. `is_known`: Redis has acknowledged an earlier heartbeat of this owner.
    pub(crate) fn heartbeat(&self, owner: NodeId, is_known: bool, times: &HeartbeatTimes, swept: &[NodeId]) -> Cmd {
        let state = if is_known { "known" } else { "new" };
        let mut cmd = self.scripts.heartbeat.call(2, 5 + swept.len());
        cmd.arg(self.keys.nodes()).arg(self.keys.sweeper());
        cmd.arg(owner.to_string()).arg(millis(times.dead_after)).arg(state);
        cmd.arg(self.node.to_string()).arg(millis(times.claim));
        for dead in swept {
            cmd.arg(dead.to_string());
        }
        cmd
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 45)
}

fn meta_ttl(retention: Retention) -> u64 {
    millis(META_TTL.max(retention.ttl.saturating_mul(2)))
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Reads the reply to a publish, of its first message; `None`: malformed reply.
pub(crate) fn published(reply: &Value) -> Option<Published> {
    match reply {
        // The reply of PUBLISH: the number of subscribers.
        Value::Int(_) => Some(Published { cursor: None, duplicate: false }),
        Value::BulkString(text) => {
            let (mark, rest) = text.split_first()?;
            let cursor = if rest.is_empty() { None } else { Some(cursor(rest)?) };
            Some(Published { cursor, duplicate: *mark == b'=' })
        }
        _ => None,
    }
}

/// Reads a room's head; `None`: malformed reply.
pub(crate) fn head(reply: &Value) -> Option<Cursor> {
    match reply {
        Value::BulkString(text) => cursor(text),
        _ => None,
    }
}

/// Reads the version of a room's presence; 0: it has none, or the reply is malformed.
pub(crate) fn presence_version(reply: &Value) -> u64 {
    u64::from_redis_value_ref(reply).unwrap_or(0)
}

/// Eight characters of epoch, then the offset in decimal.
fn cursor(text: &[u8]) -> Option<Cursor> {
    let (epoch, offset) = text.split_first_chunk::<{ Epoch::LEN }>()?;
    Some(Cursor::new(Epoch::from_bytes(*epoch)?, Offset(std::str::from_utf8(offset).ok()?.parse().ok()?)))
}
