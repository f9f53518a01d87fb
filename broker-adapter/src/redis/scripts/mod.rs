//! The Lua scripts that run in Redis. Each declares all its keys, and they share one slot. Redis forgets scripts when
//! it restarts or is ordered to: a caller that gets NOSCRIPT loads all of them and sends its command again.

use redis::{Cmd, Pipeline, RedisResult, Script, ServerErrorKind, Value, aio::MultiplexedConnection};

/// All scripts, as they are for one kind of channel.
#[derive(Debug)]
pub(crate) struct Scripts {
    /// In a cluster SPUBLISH sends a message through the one master that has the channel's slot; PUBLISH would send it
    /// through all of them.
    pub(crate) is_sharded: bool,
    pub(crate) publish: Lua,
    pub(crate) publish_once: Lua,
    pub(crate) head: Lua,
    pub(crate) presence: Lua,
    pub(crate) sweep: Lua,
    pub(crate) heartbeat: Lua,
}

/// The source of one script, and the hash by which EVALSHA calls it.
#[derive(Debug)]
pub(crate) struct Lua {
    code: String,
    hash: String,
}

impl Scripts {
    /// The scripts for a cluster, or for servers outside of one.
    pub(crate) fn new(is_sharded: bool) -> Self {
        let lua = |code: &str| {
            let code = if is_sharded { code.replace("'PUBLISH'", "'SPUBLISH'") } else { code.to_owned() };
            let hash = Script::new(&code).get_hash().to_owned();
            Lua { code, hash }
        };
        Self {
            is_sharded,
            publish: lua(concat!(include_str!("meta.lua"), include_str!("publish.lua"))),
            publish_once: lua(include_str!("publish_once.lua")),
            head: lua(concat!(include_str!("meta.lua"), include_str!("head.lua"))),
            presence: lua(concat!(include_str!("members.lua"), include_str!("presence.lua"))),
            sweep: lua(concat!(include_str!("members.lua"), include_str!("sweep.lua"))),
            heartbeat: lua(concat!(include_str!("members.lua"), include_str!("heartbeat.lua"))),
        }
    }

    pub(crate) async fn load(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        self.add_to(&mut pipe);
        pipe.exec_async(conn).await
    }

    fn all(&self) -> [&Lua; 6] {
        [&self.publish, &self.publish_once, &self.head, &self.presence, &self.sweep, &self.heartbeat]
    }

    /// Adds the commands that load all scripts.
    pub(crate) fn add_to(&self, pipe: &mut Pipeline) {
        for lua in self.all() {
            pipe.cmd("SCRIPT").arg("LOAD").arg(&lua.code).ignore();
        }
    }
}

impl Lua {
    /// The beginning of a call, to which `keys` keys and `args` arguments are to be added.
    pub(crate) fn call(&self, keys: usize, args: usize) -> Cmd {
        let mut cmd = Cmd::with_capacity(3 + keys + args, 256);
        cmd.arg("EVALSHA").arg(&self.hash).arg(keys);
        cmd
    }
}

/// Whether the reply says that Redis has forgotten the script.
pub(crate) fn is_forgotten(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::NoScript))
}
