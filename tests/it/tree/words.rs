//! One vocabulary: words that the glossary of docs/architecture.md has replaced do not come back, neither in sources nor in
//! documents, and the name of a type means one thing in the whole workspace.

use super::{imports, root};
use std::{collections::BTreeMap, path::PathBuf};

/// The crates of the product, by the files at their roots.
const PRODUCT: &[&str] =
    &["broker-adapter/src/lib.rs", "gateway/src/lib.rs", "gateway/src/main.rs", "gateway/client/src/lib.rs"];

/// Retired words, each with the words to use. Compared whole and as they are written here.
const RETIRED: &[(&str, &str)] = &[
    ("place", "cursor, index, slot, server, location or permit"),
    ("places", "cursors, indices, slots, servers, locations or permits"),
    ("carrier", "transport"),
    ("carriers", "transports"),
    ("Carrier", "Transport"),
    ("Door", "TransportRequest"),
    ("Seat", "ConnectionPermit"),
    ("Lane", "PubSubConnection or FlushQueue"),
    ("Asker", "ReplyTo"),
    ("Rails", "SubscriberDriver"),
    ("Scout", "ClusterTopology"),
    ("Bell", "TopologyEvents"),
    ("Phone", "QueryClient"),
    ("Whereabouts", "Redirect"),
    ("Keeper", "Heartbeat"),
    ("Flights", "SingleFlight"),
    ("Tap", "TransportClient"),
    ("Blow", "RandomFault"),
    ("forsake", "cancel"),
    ("obey", "apply"),
    ("obeys", "follows"),
    ("farewell", "close, or deferred leave"),
    ("whoever", "the caller, the client, the shard, …"),
    ("Whoever", "the caller, the client, the shard, …"),
    ("hears as", "is subscribed under"),
    ("that is none", "malformed, invalid, missing"),
    ("that are none", "malformed, invalid, missing"),
    ("See the module's head", "one sentence that says what the type is"),
];

/// Idioms in which a retired word means something else.
const IDIOMS: &[&str] = &["in place", "takes the place of", "taken the place of", "taken its place"];

/// Sources and documents, without generated files and this list.
fn texts() -> Vec<(PathBuf, String)> {
    let (mut found, mut directories) = (Vec::new(), vec![root()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of the tree can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            let is_text =
                [".rs", ".md", ".lua", ".sh", ".mjs", ".js", ".conf", ".yml"].iter().any(|end| name.ends_with(end));
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                directories.push(path);
            } else if is_text && name != "words.rs" && name != "CHANGELOG.md" {
                let text = std::fs::read_to_string(&path).expect("a text is UTF-8");
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 200, "the tree was not found");
    found
}

/// Whether a line has the word, not only as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |mark: Option<char>| mark.is_some_and(|mark| mark.is_alphanumeric() || mark == '_');
    line.match_indices(word)
        .any(|(at, _)| !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next()))
}

/// The retired words of a line.
fn retired(line: &str) -> Vec<(&'static str, &'static str)> {
    let line = IDIOMS.iter().fold(line.to_owned(), |line, idiom| line.replace(idiom, ""));
    RETIRED.iter().copied().filter(|(word, _)| has_word(&line, word)).collect()
}

#[test]
fn only_words_of_the_glossary_are_used() {
    let mut faults = Vec::new();
    for (path, text) in texts() {
        for (line, number) in text.lines().zip(1..) {
            for (word, instead) in retired(line) {
                faults.push(format!("{}:{number}: {word:?}; say {instead}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_type_name_has_one_meaning() {
    let mut definitions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in PRODUCT.iter().flat_map(|root_file| imports::types(&root().join(root_file))) {
        definitions.entry(name).or_default().push(file);
    }
    assert!(definitions.len() > 200, "the types were not found");
    definitions.retain(|_, files| files.len() > 1);
    let faults: Vec<_> = definitions.iter().map(|(name, files)| format!("{name}: {}", files.join(", "))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn retired_words_are_found_whole_and_idioms_are_not() {
    let words = |line| retired(line).into_iter().map(|(word, _)| word).collect::<Vec<_>>();
    assert_eq!(words("a place in the room, for whoever asks"), ["place", "whoever"]);
    assert_eq!(words("it is read in place, replaced and placed; someplace; let place_at = 1;"), [""; 0]);
}
