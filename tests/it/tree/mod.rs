//! Invariants of the tree, read from its own sources: who imports whom, how files open, what never stands in them.
//! What the compiler and clippy can check is theirs (docs, function lengths, banned methods) and is not repeated here.

mod imports;
mod words;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The layers of the gateway, from the bottom up: a module may import itself and every module that stands before it, except
/// those of [`FORBIDDEN`].
const LAYERS: &[&str] = &[
    "time",
    "random",
    "signals",
    "protocol",
    "policy",
    "session",
    "config",
    "log",
    "essential",
    "node",
    "http",
    "api",
    "shard",
    "transport",
    "admin",
    "cli",
    "app",
];

/// The module without a layer: nothing of the gateway calls it. (`main.rs`, the program, is no module of the library.)
const BENCH: &str = "bench";

/// What a module does not import although it stands below: the module, what it does not import, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("session", &["time", "random"], "the state machine of a session gets the time as an argument"),
    ("node", &["config"], "app hands over each setting, wherever it was set"),
    ("api", &["config", "session"], "a request of the HTTP API belongs to no session"),
    ("shard", &["config", "http", "api"], "a shard knows sessions and frames, and no HTTP"),
    ("transport", &["config"], "a transport gets its settings from the node"),
    ("admin", &["config", "session", "api", "shard", "transport"], "the admin listener reads what the node shows"),
    ("cli", &["node", "http", "api", "shard", "transport", "admin"], "arguments are read before anything is built"),
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

#[test]
fn modules_import_only_the_layers_below_them() {
    let layer = |module: &str| LAYERS.iter().position(|name| *name == module);
    let mut faults = Vec::new();
    for (importer, imported) in imports::dependencies(&root().join("gateway/src/lib.rs")) {
        // The crate's root has no name, and puts the process together.
        let Some(own) = importer.first().filter(|name| *name != BENCH) else { continue };
        let theirs = imported.first().map_or("", String::as_str);
        let is_below = layer(own).zip(layer(theirs)).is_some_and(|(own, theirs)| theirs <= own);
        let forbidden = FORBIDDEN.iter().find(|(module, others, _)| module == own && others.contains(&theirs));
        if !is_below || forbidden.is_some() {
            let why = forbidden.map_or("it does not stand below", |(_, _, why)| *why);
            faults.push(format!("{} may not import {}: {why}", importer.join("::"), imported.join("::")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_module_of_the_gateway_has_a_layer() {
    let listed: BTreeSet<String> = LAYERS.iter().chain([&BENCH]).map(|name| (*name).to_owned()).collect();
    assert_eq!(imports::top_modules(&root().join("gateway/src/lib.rs")), listed);
    let forbidden = FORBIDDEN.iter().flat_map(|(module, others, _)| others.iter().chain([module]));
    let unknown: Vec<_> = forbidden.filter(|name| !listed.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_broker_has_never_heard_of_sessions_sockets_or_json() {
    let manifest = std::fs::read_to_string(root().join("broker-adapter/Cargo.toml")).unwrap();
    for stranger in ["serde_json", "axum", "hyper", "tungstenite", "fanfare =", "fanfare.workspace"] {
        assert!(!manifest.contains(stranger), "broker-adapter depends on {stranger}");
    }
}

/// A task starts on whatever thread calls `tokio::spawn`, and a shard's thread must not do the broker's I/O.
#[test]
fn the_broker_starts_tasks_on_its_own_thread_only() {
    let is_test = |path: &str| path.contains("/tests/") || path.contains("/contract");
    let starts = |(path, source): &(String, String)| {
        let is_broker = path.starts_with("broker-adapter/src/") && !is_test(path);
        is_broker && source.split("#[cfg(test)]").next().is_some_and(|code| code.contains("tokio::spawn"))
    };
    let faults: Vec<String> = sources().into_iter().filter(starts).map(|(path, _)| path).collect();
    assert!(faults.is_empty(), "{faults:?} start tasks; `redis::tasks` does that");
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
