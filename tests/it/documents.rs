//! What the documents name exists: tests in the tables of the promises and of the invariants, and files. Prose is not read.

use std::path::{Path, PathBuf};

/// The documents whose tables say which test shows a claim.
const DOCUMENTS: [&str; 2] = ["docs/architecture.md", "docs/guarantees.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The text of all sources, and of the manifests, which name the lints.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of the tree can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            let is_source = [".rs", ".mjs", ".js", ".toml"].iter().any(|end| name.ends_with(end));
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                directories.push(path);
            } else if is_source {
                found.push(read(&path));
            }
        }
    }
    found
}

/// Whether the text has this identifier, and not only as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |mark: Option<char>| mark.is_some_and(|mark| mark.is_ascii_alphanumeric() || mark == '_');
    let is_whole = |at: usize| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !is_part(before) && !is_part(after)
    };
    text.match_indices(word).any(|(at, _)| is_whole(at))
}

/// What stands between backticks in the table rows of a document.
fn quoted_in_tables(document: &str) -> Vec<String> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Three words and more: shorter names may be codes and fields of the protocol.
fn is_test_name(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.split('_').count() >= 3 && text.split('_').all(is_word)
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources = sources();
    let exists = |test: &str| sources.iter().any(|source| has_word(source, test));
    let mut missing = Vec::new();
    for name in DOCUMENTS {
        let quoted = quoted_in_tables(&read(&root().join(name)));
        let tests: Vec<String> = quoted.into_iter().filter(|text| is_test_name(text)).collect();
        assert!(tests.len() > 20, "{name} has no table of tests: {tests:?}");
        missing.extend(tests.into_iter().filter(|test| !exists(test)).map(|test| format!("{name}: {test}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_file_of_the_tests_that_a_document_names_exists() {
    for name in DOCUMENTS {
        for text in read(&root().join(name)).split('`').skip(1).step_by(2) {
            let is_path = text.starts_with("tests/") && !text.contains([' ', '*']);
            assert!(!is_path || root().join(text).exists(), "{name}: {text}");
        }
    }
}
