//! The sections of the file: `[auth]`, `[[rooms]]` and `[limits]`. Only the file has their keys, except `origins`, which
//! is also a flag and a variable. `file` calls one function for each section; `reference` prints the tables of keys. What
//! the values mean is decided by the modules that own their types.

use super::{field::Field, options::Draft, value};
use crate::policy::{
    class::{Class, Classes, Glob},
    limits::Limits,
};
use fanfare_broker::Retention;
use std::{ops::RangeInclusive, str::FromStr, time::Duration};

/// A key of a section, for the reference page and for the fault that lists the known ones.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) help: &'static str,
}

/// The keys of `[auth]`.
pub(super) const AUTH: &[Key] = &[
    Key {
        name: "mode",
        default: "`\"open\"`",
        help: "Who may do what. `\"open\"`: everybody may do everything; the only mode of this version",
    },
    Key {
        name: "origins",
        default: "`[]`: only pages that the gateway serves itself",
        help: "Origins of web pages that may connect, compared exactly: `[\"https://app.example.com\"]`. The gateway's \
               own pages may connect too; once an origin is listed, not over plain HTTP under a DNS name. Also a flag \
               and a variable, see above",
    },
    Key {
        name: "trusted_proxies",
        default: "`[]`: none",
        help: "Address ranges whose `X-Forwarded-For` is believed: `[\"10.0.0.0/8\"]`",
    },
];

/// The keys of `[[rooms]]`.
pub(super) const ROOMS: &[Key] = &[
    Key {
        name: "match",
        default: "required",
        help: "Room names the rule is for; `*` matches any run of characters and is the only wildcard",
    },
    Key {
        name: "history",
        default: "`{ messages = 100, ttl = \"5m\" }`",
        help: "What is kept: at least `messages` (1 to 100000), each for `ttl` (`1s` to `30d`). `\"off\"`: nothing is \
               kept, messages have no cursors and are delivered at most once",
    },
    Key { name: "presence", default: "`true`", help: "Whether members can see each other" },
];

/// A key of `[limits]`.
pub(super) struct Limit {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) range: RangeInclusive<u64>,
    pub(super) get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

/// The keys of `[limits]`.
pub(super) const LIMITS: &[Limit] = &[
    Limit {
        name: "message_bytes",
        help: "The largest `data` of one message, in bytes",
        range: 1..=1 << 20,
        get: |l| l.message_bytes as u64,
        set: |l, n| l.message_bytes = n as usize,
    },
    Limit {
        name: "rooms_per_session",
        help: "Rooms one session may be in at a time",
        range: 1..=100_000,
        get: |l| l.rooms_per_session as u64,
        set: |l, n| l.rooms_per_session = n as usize,
    },
    Limit {
        name: "publishes_per_second",
        help: "Publishes per session, bursts of twice that; over HTTP per user or key; 0 = no limit",
        range: 0..=1_000_000,
        get: |l| l.publishes_per_second.into(),
        set: |l, n| l.publishes_per_second = n as u32,
    },
    Limit {
        name: "connections_per_ip",
        help: "Connections from one client address, or from one IPv6 network of 64 bits; 0 = no limit",
        range: 0..=10_000_000,
        get: |l| l.connections_per_ip.into(),
        set: |l, n| l.connections_per_ip = n as u32,
    },
    Limit {
        name: "accepts_per_second",
        help: "Connections the node takes per second, bursts of twice that; others wait in the kernel's backlog. \
               0 = no limit, which a node behind nginx needs: nginx takes a node that is slow to accept for a failed one",
        range: 0..=1_000_000,
        get: |l| l.accepts_per_second.into(),
        set: |l, n| l.accepts_per_second = n as u32,
    },
    Limit {
        name: "outbox_bytes",
        help: "What may wait for one client to read, in bytes, and 32 times as much while it reads, of which a quarter may be its own and the rest is shared with others; at least `message_bytes` + 4096",
        range: 4097..=256 << 20,
        get: |l| l.outbox_bytes as u64,
        set: |l, n| l.outbox_bytes = n as usize,
    },
    Limit {
        name: "outbox_messages",
        help: "Messages that may wait for one client to read, and 32 times as many while it reads",
        range: 1..=1_000_000,
        get: |l| l.outbox_messages as u64,
        set: |l, n| l.outbox_messages = n as usize,
    },
    Limit {
        name: "outbox_seconds",
        help: "Seconds in which a client has to take some of what waits for it",
        range: 1..=600,
        get: |l| l.outbox_age.as_secs(),
        set: |l, n| l.outbox_age = Duration::from_secs(n),
    },
    Limit {
        name: "outbox_total_bytes",
        help: "Memory for what waits for all clients of a node, in bytes, of which a quarter is for answers to polls; 0 = no limit, else at least `outbox_bytes`",
        range: 0..=1 << 40,
        get: |l| l.outbox_total_bytes as u64,
        set: |l, n| l.outbox_total_bytes = n as usize,
    },
    Limit {
        name: "ping_seconds",
        help: "Seconds between two WebSocket pings to a client, before jitter",
        range: 1..=300,
        get: |l| l.ping_interval.as_secs(),
        set: |l, n| l.ping_interval = Duration::from_secs(n),
    },
];

/// `[auth]`.
pub(super) fn auth(section: &Field<'_>, draft: &mut Draft) {
    const TOKENS: &str = "token mode is not part of this version";
    for (key, field) in section.accept(draft, section.table()).unwrap_or_default() {
        match key {
            "mode" => match field.text() {
                Ok("open") => {}
                Ok("token") => field.fault(draft, TOKENS),
                Ok(other) => field.fault(draft, format_args!("must be \"open\", not {other:?}")),
                Err(problem) => field.fault(draft, problem),
            },
            "origins" => {
                draft.config.origins = list(&field, draft);
                draft.locations.insert("origins", field.location());
            }
            "trusted_proxies" => draft.config.trusted_proxies = list(&field, draft),
            "jwt" | "api_keys" => field.fault(draft, TOKENS),
            _ => unknown(&field, draft, AUTH.iter().map(|key| key.name)),
        }
    }
}

/// `[[rooms]]`.
pub(super) fn rooms(section: &Field<'_>, draft: &mut Draft) {
    let mut patterns: Vec<&str> = Vec::new();
    let mut rules = Vec::new();
    for field in section.accept(draft, section.items()).unwrap_or_default() {
        let Some((pattern, class)) = rule(&field, draft) else { continue };
        if let Some(earlier) = patterns.iter().find(|earlier| [pattern, "*"].contains(earlier)) {
            field.fault(draft, format_args!("is never used: the rule {earlier:?} above it matches first"));
        }
        patterns.push(pattern);
        rules.push((Glob::new(pattern), class));
    }
    draft.config.classes = Classes::new(rules);
}

/// One element of `[[rooms]]`; `None` if its pattern is missing or invalid.
fn rule<'a>(rule: &Field<'a>, draft: &mut Draft) -> Option<(&'a str, Class)> {
    let mut class = Class::BUILT_IN;
    let mut pattern = Err("needs a match".to_owned());
    for (key, field) in rule.accept(draft, rule.table())? {
        match key {
            "match" => pattern = Ok(field.accept(draft, field.text().and_then(checked))),
            "history" => class.history = history(&field, draft),
            "presence" => class.presence = field.accept(draft, field.switch()).unwrap_or_default(),
            _ => unknown(&field, draft, ROOMS.iter().map(|key| key.name)),
        }
    }
    Some((rule.accept(draft, pattern)??, class))
}

/// Checks that a pattern can match a room's name.
fn checked(pattern: &str) -> Result<&str, String> {
    let fits = (1..=255).contains(&pattern.len())
        && pattern.bytes().all(|byte| (0x21..=0x7E).contains(&byte) && !b"{}\"\\".contains(&byte));
    let wrong = "must be 1 to 255 characters that room names can have: visible ASCII without { } \" \\";
    fits.then_some(pattern).ok_or_else(|| wrong.to_owned())
}

/// `history = "off"` or `history = { messages = …, ttl = … }`.
fn history(field: &Field<'_>, draft: &mut Draft) -> Option<Retention> {
    let mut kept = Class::BUILT_IN.history?;
    if let Ok(text) = field.text() {
        if text != "off" {
            field.fault(draft, format_args!("must be \"off\" or {{ messages = 100, ttl = \"5m\" }}, not {text:?}"));
        }
        return None;
    }
    for (key, field) in field.accept(draft, field.table())? {
        match key {
            "messages" => {
                let number = field.number().and_then(|text| value::whole(&text, 1..=100_000));
                kept.messages = field.accept(draft, number).unwrap_or_default() as u32;
            }
            "ttl" => kept.ttl = field.accept(draft, field.text().and_then(value::span)).unwrap_or_default(),
            _ => unknown(&field, draft, ["messages", "ttl"].into_iter()),
        }
    }
    Some(kept)
}

/// `[limits]`.
pub(super) fn limits(section: &Field<'_>, draft: &mut Draft) {
    for (key, field) in section.accept(draft, section.table()).unwrap_or_default() {
        let Some(limit) = LIMITS.iter().find(|limit| limit.name == key) else {
            unknown(&field, draft, LIMITS.iter().map(|limit| limit.name));
            continue;
        };
        let number = field.number().and_then(|text| value::whole(&text, limit.range.clone()));
        if let Some(number) = field.accept(draft, number) {
            (limit.set)(&mut draft.config.limits, number);
            draft.locations.insert(limit.name, field.location());
        }
    }
}

/// An array of strings, each read as a `T`. Each invalid one is a fault.
fn list<T: FromStr<Err = String>>(field: &Field<'_>, draft: &mut Draft) -> Vec<T> {
    let items = field.accept(draft, field.items()).unwrap_or_default();
    items.iter().filter_map(|item| item.accept(draft, item.text().and_then(str::parse))).collect()
}

fn unknown(field: &Field<'_>, draft: &mut Draft, known: impl Iterator<Item = &'static str>) {
    field.fault(draft, format_args!("unknown key; known here: {}", known.collect::<Vec<_>>().join(", ")));
}
