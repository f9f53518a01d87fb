//! Invariants of the tree, read from its own sources: who imports whom, how files open, what never stands in them.
//! What the compiler and clippy can check is theirs (docs, function lengths, banned methods) and is not repeated here.

mod imports;

use std::path::{Path, PathBuf};

/// The layers of the gateway, from the bottom up: a module may import itself and every module that stands before it.
/// `main` and `bench`, which nothing of the gateway calls, are not listed.
const LAYERS: &[&str] = &[
    "time",
    "random",
    "protocol",
    "policy",
    "session",
    "config",
    "node",
    "http",
    "shard",
    "api",
    "transport",
    "admin",
    "cli",
    "app",
];

/// A file is one concept; no file is longer.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in the tree").to_path_buf()
}

/// Every `.rs` file of the four crates, with its path from the root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = ["gateway", "broker-adapter", "tests"].map(|name| root().join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a source directory can be read") {
            let path = entry.expect("a directory entry can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                directories.push(path);
            } else if name.ends_with(".rs") {
                let relative =
                    path.strip_prefix(root()).expect("it lies below the root").to_string_lossy().into_owned();
                found.push((relative, std::fs::read_to_string(&path).expect("a source is UTF-8")));
            }
        }
    }
    assert!(found.len() > 40, "the tree was not found: {found:?}");
    found
}

/// What a source names of its own crate, two path segments deep: `crate::a::…` and `crate::{a::…, b}`.
fn paths_named(source: &str) -> Vec<String> {
    let code: Vec<&str> = source
        .lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let mut named = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            named.extend(first_level(list));
        } else {
            named.push(path_start(rest));
        }
    }
    named
}

/// The first path segment of each item of a `{…}` list whose opening brace has been read.
fn first_level(list: &str) -> Vec<String> {
    let (mut depth, mut start, mut named) = (1_usize, 0, Vec::new());
    for (place, mark) in list.char_indices() {
        match mark {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && mark == ',') {
            named.push(path_start(list[start..place].trim_start()));
            start = place + 1;
        }
        if depth == 0 {
            break;
        }
    }
    named.retain(|name| !name.is_empty());
    named
}

/// `a::b` of `a::b::c`, `a` of `a::{b, c}`.
fn path_start(text: &str) -> String {
    let first = identifier(text);
    match text[first.len()..].strip_prefix("::").map(identifier) {
        Some(second) if !second.is_empty() => format!("{first}::{second}"),
        _ => first,
    }
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|mark| mark.is_ascii_alphanumeric() || *mark == '_').collect()
}

#[test]
fn imports_are_read_in_all_their_forms() {
    let source = "use crate::{a::{b, c}, d,\n e::f};\nlet x = crate::g::h(); // crate::i\n//! crate::j\n#[cfg(test)]\nuse crate::k;";
    assert_eq!(paths_named(source), ["a", "d", "e::f", "g::h", "i"]);
}

#[test]
fn modules_import_only_the_layers_below_them() {
    let layer = |module: &str| LAYERS.iter().position(|name| *name == module);
    let mut faults = Vec::new();
    for (path, source) in sources() {
        let Some(inside) = path.strip_prefix("gateway/src/") else { continue };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        let Some(own) = layer(module).filter(|_| !inside.ends_with("tests.rs")) else { continue };
        for named in paths_named(&source) {
            let imported = named.split("::").next().unwrap_or_default();
            if layer(imported).is_none_or(|theirs| theirs > own) {
                faults.push(format!("{path}: {module} may not import {named}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_broker_has_never_heard_of_sessions_sockets_or_json() {
    let manifest = std::fs::read_to_string(root().join("broker-adapter/Cargo.toml")).unwrap();
    for stranger in ["serde_json", "axum", "hyper", "tungstenite", "fanfare =", "fanfare.workspace"] {
        assert!(!manifest.contains(stranger), "broker-adapter depends on {stranger}");
    }
}

#[test]
fn every_file_says_first_what_lives_there() {
    let silent: Vec<String> =
        sources().into_iter().filter(|(_, source)| !source.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "no //! header: {silent:?}");
}

#[test]
fn no_file_is_longer_than_a_concept() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|(_, source)| source.lines().count() > LINES_MAX)
        .map(|(path, source)| format!("{path}: {} lines", source.lines().count()))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Put together so that this file does not find itself.
    let marks = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("#[ig", "nore"),
        concat!("allow(dead", "_code"),
        concat!("unbounded", "_channel("),
    ];
    let nap = concat!("::sle", "ep(");
    let mut faults = Vec::new();
    for (path, source) in sources() {
        for (number, line) in source.lines().enumerate() {
            let is_left = marks.iter().any(|mark| line.contains(mark));
            let is_nap = path.starts_with("tests/") && line.contains(nap);
            if is_left || is_nap {
                faults.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_websocket_library_is_named_in_one_place_of_the_server() {
    let strangers: Vec<String> = sources()
        .into_iter()
        .filter(|(path, source)| path.starts_with("gateway/src/") && source.contains("tungstenite::"))
        .map(|(path, _)| path)
        .filter(|path| !path.starts_with("gateway/src/transport/ws"))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}
