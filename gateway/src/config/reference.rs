//! docs/configuration.md, made from the option table and the sections' tables. `fanfare check --reference` prints it; a test
//! compares the file with it and rewrites the file on request.

use super::{
    options::{self, Spec, ValueKind},
    sections::{AUTH, Key, LIMITS, ROOMS},
};
use crate::policy::limits::Limits;
use std::fmt::Write as _;

const HEAD: &str = "\
# Configuration

<!-- Generated from the option table in gateway/src/config: `FANFARE_BLESS=1 cargo test -p fanfare config` rewrites it. -->

Every option can be set in four ways; the later one wins: its default, the file (`--config FILE`, TOML), the
environment, a flag. `fanfare serve --help` shows the same options, `fanfare check --reference` prints this page, and
`fanfare check FILE` prints `ok` or every fault that `serve` would find with that file in the same environment.

Configuration is strict. An unknown key, flag or `FANFARE_…` variable, or a value that is out of range or of another type,
stops the start with exit code 78. All faults are listed at once on standard error, one per line, each with its location;
of more than 20 the first 20. A public listener that is not loopback is a fault too, unless `open` is set, so that no
gateway is open to other machines by accident.
(`FANFARE_URL`, `FANFARE_TOKEN` and `FANFARE_CA_FILE` belong to the client commands. Variables that Kubernetes and Docker
links make for a service of this name, such as `FANFARE_PORT_8080_TCP` and `FANFARE_SERVICE_HOST`, are ignored.)

## Options

| flag | environment | file | default | |
|---|---|---|---|---|
";

const SECTIONS: &str = "
A switch as a flag alone means `true`; `--open=false` turns off what the file turned on. Several Redis URLs or origins: the
flag repeated, separated by blanks in the environment, an array in the file.

## Sections of the file

These keys can be set in the file only, `origins` excepted.
";

const EXAMPLE: &str = r#"
## Example

```toml
listen = "0.0.0.0:8080"
redis = "redis://redis:6379"
open = true                          # everybody may read and write every room

[auth]
origins = ["https://app.example.com"]
trusted_proxies = ["10.0.0.0/8"]

[[rooms]]                            # the first match wins
match = "typing:*"
history = "off"

[[rooms]]
match = "chat:*"
history = { messages = 1000, ttl = "24h" }
presence = true

[limits]
publishes_per_second = 20
```
"#;

/// The whole page.
pub(crate) fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for spec in options::all() {
        page.push_str(&row(spec));
    }
    page.push_str(SECTIONS);
    section(&mut page, "[auth]", AUTH);
    section(&mut page, "[[rooms]]", ROOMS);
    page.push_str("\nWithout `history` or `presence` a rule leaves it at its default. A room that no rule matches has the defaults.\n");
    page.push_str("\n### `[limits]`\n\n| key | default | range | |\n|---|---|---|---|\n");
    for limit in LIMITS {
        let (name, help, range) = (limit.name, limit.help, &limit.range);
        let default = (limit.get)(&Limits::default());
        let _ = writeln!(page, "| `{name}` | {default} | {} to {} | {help} |", range.start(), range.end());
    }
    page.push_str(EXAMPLE);
    page
}

fn row(spec: &Spec) -> String {
    let value = match spec.kind {
        ValueKind::Switch => String::new(),
        ValueKind::Seconds => " SECONDS".to_owned(),
        ValueKind::Text(value) | ValueKind::Number(value) | ValueKind::List(value) => {
            format!(" {}", value.replace('|', "\\|"))
        }
    };
    let key = match spec.kind {
        _ if spec.name == options::CONFIG_FILE.name => "".to_owned(),
        ValueKind::Number(_) | ValueKind::Seconds | ValueKind::Switch => format!("`{} = {}`", spec.name, spec.example),
        ValueKind::Text(_) | ValueKind::List(_) if spec.section.is_empty() => {
            format!("`{} = \"{}\"`", spec.name, spec.example)
        }
        ValueKind::Text(_) | ValueKind::List(_) => {
            format!("`[{}]` `{} = [\"{}\"]`", spec.section, spec.name, spec.example)
        }
    };
    let (flag, variable) = (spec.flag(), spec.variable());
    format!("| `--{flag}{value}` | `{variable}` | {key} | {} | {} |\n", spec.default, spec.help)
}

fn section(page: &mut String, title: &str, keys: &[Key]) {
    let _ = write!(page, "\n### `{title}`\n\n| key | default | |\n|---|---|---|\n");
    for key in keys {
        let _ = writeln!(page, "| `{}` | {} | {} |", key.name, key.default, key.help);
    }
}
