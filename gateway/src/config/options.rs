//! The one table of options: the flags of `serve`, the `FANFARE_*` variables, keys of the file, `--help` and
//! docs/configuration.md all come from it. The layers of `config` apply it. A new option is a new row and nothing else.

use super::{
    fault::{Faults, Location},
    settings::Config,
    value,
};
use std::{collections::BTreeMap, path::PathBuf};

/// How an option's value looks in the file, with the name that help gives the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    /// A string.
    Text(&'static str),
    /// An integer.
    Number(&'static str),
    /// A time: an integer of seconds, or a string with a unit.
    Seconds,
    /// A boolean; the flag alone means true.
    Switch,
    /// A string or an array of strings; the flag may be repeated, the environment separates them by blanks.
    List(&'static str),
}

/// A row of the table.
pub(crate) struct Spec {
    /// The key in the file; in capitals the environment variable; with dashes the flag, unless `flag` names another one.
    pub(crate) name: &'static str,
    /// The section of the file that has the key; empty: the top level.
    pub(crate) section: &'static str,
    /// A name of its own for the flag.
    flag: Option<&'static str>,
    pub(crate) kind: ValueKind,
    /// Its default, in words or as it would be written.
    pub(crate) default: &'static str,
    /// What it does, in one sentence without its full stop.
    pub(crate) help: &'static str,
    /// A value to copy.
    pub(crate) example: &'static str,
    /// Reads a value from text and sets it. Elements of a list are separated by blanks.
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
}

impl Spec {
    /// The flag, without the dashes in front of it.
    pub(crate) fn flag(&self) -> String {
        self.flag.map_or_else(|| self.name.replace('_', "-"), str::to_owned)
    }

    /// The environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("FANFARE_{}", self.name.to_ascii_uppercase())
    }
}

/// A configuration while its layers are put together.
pub(super) struct Draft {
    /// The settings so far.
    pub(super) config: Config,
    /// The file to read.
    pub(super) file: Option<PathBuf>,
    /// Whether anonymous clients of other machines may do everything.
    pub(super) open: bool,
    /// Where each option and each limit was set last.
    pub(super) locations: BTreeMap<&'static str, Location>,
    /// The faults so far.
    pub(super) faults: Faults,
}

impl Draft {
    /// Begins with the defaults.
    pub(super) fn new(config: Config) -> Self {
        Self { config, file: None, open: false, locations: BTreeMap::new(), faults: Faults::default() }
    }

    /// Sets one option; an invalid value is a fault and changes nothing.
    pub(super) fn take(&mut self, spec: &Spec, text: &str, location: Location) {
        let result = if text.is_empty() {
            Err("is empty; leave it out for the default".to_owned())
        } else {
            (spec.set)(self, text)
        };
        match result {
            Ok(()) => drop(self.locations.insert(spec.name, location)),
            Err(problem) => self.faults.add(&location, problem),
        }
    }
}

/// Sets a field to a value that was read.
fn put<T>(field: &mut T, value: Result<T, String>) -> Result<(), String> {
    *field = value?;
    Ok(())
}

/// What most rows have in common.
const TOP_LEVEL: Spec = Spec {
    name: "",
    section: "",
    flag: None,
    kind: ValueKind::Switch,
    default: "",
    help: "",
    example: "",
    set: |_, _| Ok(()),
};

/// The option that names the file. It is the only one that the file cannot have.
pub(crate) const CONFIG_FILE: Spec = Spec {
    name: "config",
    kind: ValueKind::Text("FILE"),
    default: "none",
    help: "Configuration file (TOML)",
    example: "/etc/fanfare.toml",
    set: |d, text| put(&mut d.file, Ok(Some(text.into()))),
    ..TOP_LEVEL
};

/// Every other option, in the order of `--help`.
pub(crate) const OPTIONS: &[Spec] = &[
    Spec {
        name: "listen",
        kind: ValueKind::Text("IP:PORT"),
        default: "127.0.0.1:8080",
        help: "Public listener: clients and back ends; port 0 picks a free one",
        example: "0.0.0.0:8080",
        set: |d, text| put(&mut d.config.listen, value::address(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "admin",
        kind: ValueKind::Text("IP:PORT"),
        default: "127.0.0.1:8081",
        help: "Admin listener: metrics, health, drain; keep it away from the public",
        example: "0.0.0.0:8081",
        set: |d, text| put(&mut d.config.admin, value::address(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "ready_file",
        kind: ValueKind::Text("FILE"),
        default: "none",
        help: "Once serving, write the bound addresses to this file, as JSON",
        example: "/run/fanfare/ready.json",
        set: |d, text| put(&mut d.config.ready_file, Ok(Some(text.into()))),
        ..TOP_LEVEL
    },
    Spec {
        name: "redis",
        kind: ValueKind::List("URL"),
        default: "none: one node with the embedded broker",
        help: "Redis that connects the nodes: redis://, redis+sentinel://, redis+cluster:// (TLS: rediss); repeatable",
        example: "redis://redis:6379",
        set: |d, text| put(&mut d.config.redis, text.split_whitespace().map(str::parse).collect::<Result<Vec<_>, _>>()),
        ..TOP_LEVEL
    },
    Spec {
        name: "redis_ca_file",
        kind: ValueKind::Text("FILE"),
        default: "the public authorities",
        help: "PEM certificates of the authorities that vouch for Redis over TLS",
        example: "/etc/fanfare/redis-ca.pem",
        set: |d, text| put(&mut d.config.redis_ca_file, Ok(Some(text.into()))),
        ..TOP_LEVEL
    },
    Spec {
        name: "redis_prefix",
        kind: ValueKind::Text("PREFIX"),
        default: "fanfare",
        help: "Beginning of all keys and channels: clusters with different prefixes share a Redis and see nothing of each other",
        example: "staging",
        set: |d, text| put(&mut d.config.redis_prefix, value::redis_prefix(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "redis_wait",
        kind: ValueKind::Seconds,
        default: "0",
        help: "How long to wait for Redis at start before giving up",
        example: "30",
        set: |d, text| put(&mut d.config.redis_wait, value::seconds(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "node",
        kind: ValueKind::Text("NAME"),
        default: "host name, '-' and 4 random characters",
        help: "This node's name in frames, metrics and logs; unique in the cluster",
        example: "gateway-1",
        set: |d, text| put(&mut d.config.node, value::node(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "advertise",
        kind: ValueKind::Text("IP:PORT"),
        default: "from the listener's address",
        help: "Address under which nginx reaches this node, for sticky routes",
        example: "10.0.3.7:8080",
        set: |d, text| put(&mut d.config.advertise, value::address(text).map(Some)),
        ..TOP_LEVEL
    },
    Spec {
        name: "shards",
        kind: ValueKind::Number("N"),
        default: "the cores this process may use",
        help: "Threads that own connections, 1 to 256",
        example: "4",
        set: |d, text| put(&mut d.config.shards, value::whole(text, 1..=256).map(|shards| shards as usize)),
        ..TOP_LEVEL
    },
    Spec {
        name: "open",
        kind: ValueKind::Switch,
        default: "false",
        help: "Let anonymous clients of other machines do everything: needed for a listener that is not loopback",
        example: "true",
        set: |d, text| put(&mut d.open, value::switch(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "origins",
        section: "auth",
        flag: Some("origin"),
        kind: ValueKind::List("ORIGIN"),
        default: "none: only pages that the gateway serves itself",
        help: "Origin of web pages that may connect, compared exactly, beside the gateway's own (once one is set, not \
               those over plain HTTP under a DNS name); repeatable",
        example: "https://app.example.com",
        set: |d, text| {
            put(&mut d.config.origins, text.split_whitespace().map(str::parse).collect::<Result<Vec<_>, _>>())
        },
    },
    Spec {
        name: "log",
        kind: ValueKind::Text("text|json"),
        default: "text on a terminal, else json",
        help: "How log lines are written",
        example: "json",
        set: |d, text| put(&mut d.config.log, value::log_format(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "log_level",
        kind: ValueKind::Text("LEVEL"),
        default: "info",
        help: "The least important lines logged: error, warn, info, debug or trace",
        example: "warn",
        set: |d, text| put(&mut d.config.log_level, value::log_level(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "drain",
        kind: ValueKind::Seconds,
        default: "20",
        help: "Window over which SIGTERM spreads the closing of connections",
        example: "20",
        set: |d, text| put(&mut d.config.drain, value::seconds(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "demo",
        kind: ValueKind::Switch,
        default: "true",
        help: "Serve the demo pages at /demo/",
        example: "false",
        set: |d, text| put(&mut d.config.demo, value::switch(text)),
        ..TOP_LEVEL
    },
    Spec {
        name: "ready_needs_backplane",
        kind: ValueKind::Switch,
        default: "false",
        help: "Make /readyz fail while Redis is away; all nodes then leave the balancer at once",
        example: "true",
        set: |d, text| put(&mut d.config.ready_needs_backplane, value::switch(text)),
        ..TOP_LEVEL
    },
];

/// Every option, the file's name first.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    const FIRST: &[Spec] = &[CONFIG_FILE];
    FIRST.iter().chain(OPTIONS)
}
