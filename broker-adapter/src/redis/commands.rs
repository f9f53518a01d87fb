//! The Lua scripts, and the commands that call them. Each declares all its keys, and they share one slot.
//! Redis forgets scripts when it restarts or is told to: whoever gets NOSCRIPT loads them again and repeats.

use crate::redis::keys::{Names, Part, Partition};
use crate::{
    Cursor, Epoch, IdempotencyKey, NodeId, Offset, Publish, Published, Retention, Room, SessionId,
    envelope::{self, Kind},
};
use bytes::BytesMut;
use redis::{Cmd, RedisResult, Script, ServerErrorKind, Value, aio::MultiplexedConnection};
use std::{sync::LazyLock, time::Duration};

/// The scripts of one way to publish.
#[derive(Debug)]
pub(crate) struct Scripts {
    sharded: bool,
    publish: Lua,
    once: Lua,
    head: Lua,
    attend: Lua,
    beat: Lua,
}

#[derive(Debug)]
struct Lua {
    code: String,
    hash: String,
}

static PLAIN: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(false));
/// In a cluster a message goes through the one master that has the channel's slot, not through all of them.
static SHARDED: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(true));

impl Scripts {
    fn new(sharded: bool) -> Self {
        let lua = |code: &str| {
            let code = if sharded { code.replace("'PUBLISH'", "'SPUBLISH'") } else { code.to_owned() };
            let hash = Script::new(&code).get_hash().to_owned();
            Lua { code, hash }
        };
        Self {
            sharded,
            publish: lua(include_str!("scripts/publish.lua")),
            once: lua(include_str!("scripts/publish_once.lua")),
            head: lua(include_str!("scripts/head.lua")),
            attend: lua(include_str!("scripts/presence.lua")),
            beat: lua(include_str!("scripts/heartbeat.lua")),
        }
    }

    /// Those for a cluster, or for servers that stand alone.
    pub(crate) fn of(cluster: bool) -> &'static Self {
        if cluster { &SHARDED } else { &PLAIN }
    }

    /// Loads every script.
    pub(crate) async fn load(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for lua in [&self.publish, &self.once, &self.head, &self.attend, &self.beat] {
            pipe.cmd("SCRIPT").arg("LOAD").arg(&lua.code).ignore();
        }
        pipe.exec_async(conn).await
    }
}

/// How long a room is remembered after its last message or join, at least: until then its cursors mean something.
const META_TTL: Duration = Duration::from_secs(24 * 3600);
/// The first version of a room's presence is the time in units of which a second has so many, so that versions go on
/// growing when Redis has forgotten the last one.
const VERSIONS_PER_MS: u64 = 1000;

/// Whether Redis has forgotten the script.
pub(crate) fn is_forgotten(value: &Value) -> bool {
    matches!(value, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::NoScript))
}

fn call(script: &Lua, keys: usize, args: usize) -> Cmd {
    let mut cmd = Cmd::with_capacity(3 + keys + args, 256);
    cmd.arg("EVALSHA").arg(&script.hash).arg(keys);
    cmd
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 45)
}

fn meta_ttl(retention: Retention) -> u64 {
    millis(META_TTL.max(retention.ttl.saturating_mul(2)))
}

/// Whose memory gave out a room's offsets: a prefix of Redis's `run_id`, which every restart and failover changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Fence(String);

impl Fence {
    /// 16 of the 40 hexadecimal digits: enough, and each room's meta holds a copy.
    pub(crate) fn new(run_id: &str) -> Self {
        Self(run_id.chars().take(16).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What commands are made with.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) names: Names,
    pub(crate) node: NodeId,
    pub(crate) fence: Fence,
    pub(crate) scripts: &'static Scripts,
}

impl Maker {
    /// The command that publishes these messages of one room, with their running numbers.
    ///
    /// # Panics
    /// Never with at least one message; more than one have neither keys nor different retentions.
    pub(crate) fn publish(&self, messages: &[(Publish, u64)]) -> Cmd {
        let (first, _) = &messages[0];
        let tails = messages.iter().map(|(p, number)| {
            let id = crate::MessageId { node: self.node, number: *number };
            let mut tail = BytesMut::new();
            envelope::put_tail(&mut tail, id, p.ts_ms, p.author, &p.payload);
            tail
        });
        let kind = if messages.len() == 1 { Kind::Message } else { Kind::Messages };
        let Some(retention) = first.retention else {
            return self.publish_live(first, &envelope::messages_without_cursor(kind, tails));
        };
        let keys = 2 + usize::from(first.key.is_some());
        let mut cmd = call(&self.scripts.publish, keys, 8 + messages.len());
        cmd.arg(self.names.of(Part::Meta, &first.room)).arg(self.names.of(Part::Stream, &first.room));
        if let Some(key) = &first.key {
            cmd.arg(self.names.idempotency(&first.room, key));
        }
        cmd.arg(self.names.of(Part::Channel, &first.room))
            .arg(&envelope::head(kind, true)[..])
            .arg(self.fence.as_str())
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

    fn publish_live(&self, p: &Publish, message: &[u8]) -> Cmd {
        let channel = self.names.of(Part::Channel, &p.room);
        let Some(key) = &p.key else {
            return self.send(&channel, message);
        };
        let mut cmd = call(&self.scripts.once, 1, 3);
        cmd.arg(self.names.idempotency(&p.room, key)).arg(channel).arg(message).arg(millis(IdempotencyKey::TTL));
        cmd
    }

    /// Whether channels have slots.
    pub(crate) fn is_sharded(&self) -> bool {
        self.scripts.sharded
    }

    /// The command that sends something to whoever listens now.
    pub(crate) fn send(&self, channel: &str, message: &[u8]) -> Cmd {
        let mut cmd = Cmd::with_capacity(3, 32 + channel.len() + message.len());
        cmd.arg(if self.scripts.sharded { "SPUBLISH" } else { "PUBLISH" }).arg(channel).arg(message);
        cmd
    }

    /// The command that reads a room's head, and begins the room if there is none.
    pub(crate) fn head(&self, room: &Room, retention: Retention) -> Cmd {
        let mut cmd = call(&self.scripts.head, 2, 3);
        cmd.arg(self.names.of(Part::Meta, room))
            .arg(self.names.of(Part::Stream, room))
            .arg(self.fence.as_str())
            .arg(&Epoch::random().as_bytes()[..])
            .arg(meta_ttl(retention));
        cmd
    }

    /// The command that controls a session's coming or going.
    pub(crate) fn update_presence(&self, change: &Change<'_>, ts_ms: u64) -> Cmd {
        let room = change.room;
        let partition = Partition::of(room);
        let mut tail = BytesMut::new();
        envelope::put_tail(
            &mut tail,
            crate::MessageId { node: self.node, number: 0 },
            ts_ms,
            Some(*change.session),
            &[],
        );
        let (enter, payload, announced) = match change.what {
            What::Enter { payload, announced } => (true, payload, announced),
            What::Leave => (false, &[][..], true),
        };
        let mut cmd = call(&self.scripts.attend, 4, 11);
        cmd.arg(self.names.of(Part::Sessions, room))
            .arg(self.names.of(Part::Users, room))
            .arg(self.names.rooms(partition))
            .arg(self.names.rooms_of(change.owner, partition))
            .arg(if enter { "enter" } else { "leave" })
            .arg(&change.session.0[..])
            .arg(&change.owner.0.to_be_bytes()[..])
            .arg(payload)
            .arg(u8::from(announced))
            .arg(u8::from(change.tell))
            .arg(self.names.of(Part::Channel, room))
            .arg(&envelope::head(Kind::Joined, false)[..])
            .arg(&envelope::head(Kind::Left, false)[..])
            .arg(&tail[..])
            .arg(room.as_str())
            .arg(ts_ms * VERSIONS_PER_MS);
        cmd
    }

    /// The command that says that `owner` lives, controls which dead ones have been swept, and claims others.
    pub(crate) fn beat(&self, owner: Owner, dead_after: Duration, swept: &[NodeId]) -> Cmd {
        let (owner, news) = match owner {
            Owner::New(owner) => (owner, "new"),
            Owner::Known(owner) => (owner, "known"),
        };
        let mut cmd = call(&self.scripts.beat, 1, 3 + swept.len());
        cmd.arg(self.names.nodes()).arg(owner.to_string()).arg(millis(dead_after)).arg(news);
        for dead in swept {
            cmd.arg(dead.to_string());
        }
        cmd
    }
}

/// In whose name a heartbeat speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// For the first time, as far as anybody knows.
    New(NodeId),
    /// Again.
    Known(NodeId),
}

/// A session's coming or going, for [`Maker::attend`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) room: &'a Room,
    pub(crate) session: &'a SessionId,
    /// Who answers for the entry. Only the owner's leave removes it.
    pub(crate) owner: NodeId,
    pub(crate) what: What<'a>,
    /// Whether members hear of it now, if it is one for others.
    pub(crate) tell: bool,
}

/// Coming or going.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// With what [`envelope::presence_payload`] made, and whether its going is to be announced one day.
    Enter {
        payload: &'a [u8],
        announced: bool,
    },
    Leave,
}

/// What the publish command's answer means, for its first message; `None`: nothing that any script here answers.
pub(crate) fn published(answer: &Value) -> Option<Published> {
    match answer {
        // PUBLISH: how many heard it.
        Value::Int(_) => Some(Published { cursor: None, duplicate: false }),
        Value::BulkString(text) => {
            let (mark, rest) = text.split_first()?;
            let cursor = if rest.is_empty() { None } else { Some(cursor(rest)?) };
            Some(Published { cursor, duplicate: *mark == b'=' })
        }
        _ => None,
    }
}

/// A head, as scripts answer with it.
pub(crate) fn head(answer: &Value) -> Option<Cursor> {
    match answer {
        Value::BulkString(text) => cursor(text),
        _ => None,
    }
}

/// Eight characters of epoch, then the offset in decimal.
fn cursor(text: &[u8]) -> Option<Cursor> {
    let (epoch, offset) = text.split_first_chunk::<{ Epoch::LEN }>()?;
    Some(Cursor::new(Epoch::from_bytes(*epoch)?, Offset(std::str::from_utf8(offset).ok()?.parse().ok()?)))
}
