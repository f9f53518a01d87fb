//! The one table of options. The flags of `serve`, the `FANFARE_*` environment names, the file's top-level keys, `--help`
//! and docs/configuration.md all come from it; the layers in `config` apply it. A new option is a new row, nothing else.

use super::{
    Config,
    fault::{Faults, Place},
    value,
};
use std::{collections::BTreeMap, path::PathBuf};

/// How an option's value looks in the file, and whether its flag takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// An integer.
    Number,
    /// A boolean; the flag alone means true.
    Switch,
    /// A string or an array of strings; the flag may be repeated, the environment separates them by blanks.
    List,
}

/// A row of the table.
pub(crate) struct Spec {
    /// The key in the file; the flag has dashes for its underscores, the environment has it in capitals.
    pub(crate) name: &'static str,
    /// What its value is.
    pub(crate) kind: Kind,
    /// What stands for the value in help; empty for a switch.
    pub(crate) value: &'static str,
    /// What holds without it, in words or as it would be written.
    pub(crate) default: &'static str,
    /// What it does, in one sentence without its full stop.
    pub(crate) help: &'static str,
    /// A value to copy.
    pub(crate) example: &'static str,
    /// Reads the text and takes it over. Elements of a list are separated by blanks.
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
}

impl Spec {
    /// The flag, without its dashes in front.
    pub(crate) fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("FANFARE_{}", self.name.to_ascii_uppercase())
    }
}

/// A configuration that is being put together, layer by layer.
pub(super) struct Draft {
    /// As far as it is known.
    pub(super) config: Config,
    /// The file to read; it cannot name itself.
    pub(super) file: Option<PathBuf>,
    /// Whether anybody may do anything although others than this machine can connect.
    pub(super) open: bool,
    /// Where each option and each limit was set last.
    pub(super) places: BTreeMap<&'static str, Place>,
    /// What was wrong so far.
    pub(super) faults: Faults,
}

impl Draft {
    /// Nothing set yet.
    pub(super) fn new(config: Config) -> Self {
        Self { config, file: None, open: false, places: BTreeMap::new(), faults: Faults::default() }
    }

    /// Takes over one option's value from one place; a bad one is a fault and changes nothing.
    pub(super) fn take(&mut self, spec: &Spec, text: &str, place: Place) {
        let result = if text.is_empty() {
            Err("is empty; leave it out for the default".to_owned())
        } else {
            (spec.set)(self, text)
        };
        match result {
            Ok(()) => drop(self.places.insert(spec.name, place)),
            Err(problem) => self.faults.add(place, problem),
        }
    }
}

/// Puts a value that was read into its place.
fn put<T>(field: &mut T, value: Result<T, String>) -> Result<(), String> {
    *field = value?;
    Ok(())
}

/// The option that names the file; it is the only one that the file cannot hold.
pub(crate) const CONFIG_FILE: Spec = Spec {
    name: "config",
    kind: Kind::Text,
    value: "FILE",
    default: "none",
    help: "Configuration file (TOML)",
    example: "/etc/fanfare.toml",
    set: |d, text| put(&mut d.file, Ok(Some(text.into()))),
};

/// Every other option, in the order of `--help`.
pub(crate) const OPTIONS: &[Spec] = &[
    Spec {
        name: "listen",
        kind: Kind::Text,
        value: "IP:PORT",
        default: "127.0.0.1:8080",
        help: "Public listener: clients and back ends; port 0 picks a free one",
        example: "0.0.0.0:8080",
        set: |d, text| put(&mut d.config.listen, value::address(text)),
    },
    Spec {
        name: "admin",
        kind: Kind::Text,
        value: "IP:PORT",
        default: "127.0.0.1:8081",
        help: "Admin listener: metrics, health, drain; keep it away from the public",
        example: "0.0.0.0:8081",
        set: |d, text| put(&mut d.config.admin, value::address(text)),
    },
    Spec {
        name: "ready_file",
        kind: Kind::Text,
        value: "FILE",
        default: "none",
        help: "Once serving, write the bound addresses to this file, as JSON",
        example: "/run/fanfare/ready.json",
        set: |d, text| put(&mut d.config.ready_file, Ok(Some(text.into()))),
    },
    Spec {
        name: "redis",
        kind: Kind::List,
        value: "URL",
        default: "none: one node with the embedded broker",
        help: "Redis that connects the nodes: redis://, redis+sentinel://, redis+cluster:// (TLS: rediss); repeatable",
        example: "redis://redis:6379",
        set: |d, text| put(&mut d.config.redis, text.split_whitespace().map(str::parse).collect::<Result<Vec<_>, _>>()),
    },
    Spec {
        name: "redis_ca_file",
        kind: Kind::Text,
        value: "FILE",
        default: "the public authorities",
        help: "PEM certificates of the authorities that vouch for Redis over TLS",
        example: "/etc/fanfare/redis-ca.pem",
        set: |d, text| put(&mut d.config.redis_ca_file, Ok(Some(text.into()))),
    },
    Spec {
        name: "redis_wait",
        kind: Kind::Number,
        value: "SECONDS",
        default: "0",
        help: "How long to wait for Redis at start before giving up",
        example: "30",
        set: |d, text| put(&mut d.config.redis_wait, value::seconds(text)),
    },
    Spec {
        name: "node",
        kind: Kind::Text,
        value: "NAME",
        default: "host name, '-' and 4 random characters",
        help: "This node's name in frames, metrics and logs; unique in the cluster",
        example: "gateway-1",
        set: |d, text| put(&mut d.config.node, value::node(text)),
    },
    Spec {
        name: "advertise",
        kind: Kind::Text,
        value: "IP:PORT",
        default: "from the listener's address",
        help: "Address under which nginx reaches this node, for sticky routes",
        example: "10.0.3.7:8080",
        set: |d, text| put(&mut d.config.advertise, value::address(text).map(Some)),
    },
    Spec {
        name: "shards",
        kind: Kind::Number,
        value: "N",
        default: "the cores this process may use",
        help: "Threads that own connections, 1 to 256",
        example: "4",
        set: |d, text| {
            let shards = value::whole(text, 1..=256)?;
            put(&mut d.config.shards, usize::try_from(shards).map_err(|e| e.to_string()))
        },
    },
    Spec {
        name: "open",
        kind: Kind::Switch,
        value: "",
        default: "false",
        help: "Allow anonymous everything on a listener that is not loopback",
        example: "true",
        set: |d, text| put(&mut d.open, value::switch(text)),
    },
    Spec {
        name: "log",
        kind: Kind::Text,
        value: "text|json",
        default: "text on a terminal, else json",
        help: "How log lines are written",
        example: "json",
        set: |d, text| put(&mut d.config.log, text.parse()),
    },
    Spec {
        name: "log_level",
        kind: Kind::Text,
        value: "LEVEL",
        default: "info",
        help: "The least important lines logged: error, warn, info, debug or trace",
        example: "warn",
        set: |d, text| put(&mut d.config.log_level, text.parse()),
    },
    Spec {
        name: "drain",
        kind: Kind::Number,
        value: "SECONDS",
        default: "20",
        help: "Window over which SIGTERM spreads the closing of connections",
        example: "20",
        set: |d, text| put(&mut d.config.drain, value::seconds(text)),
    },
    Spec {
        name: "demo",
        kind: Kind::Switch,
        value: "",
        default: "true",
        help: "Serve the demo pages at /demo/",
        example: "false",
        set: |d, text| put(&mut d.config.demo, value::switch(text)),
    },
    Spec {
        name: "ready_needs_backplane",
        kind: Kind::Switch,
        value: "",
        default: "false",
        help: "Make /readyz fail while Redis is away; all nodes then leave the balancer at once",
        example: "true",
        set: |d, text| put(&mut d.config.ready_needs_backplane, value::switch(text)),
    },
];

/// Every option, the file's name first.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    const FIRST: &[Spec] = &[CONFIG_FILE];
    FIRST.iter().chain(OPTIONS)
}
