//! The configuration file as a layer: its top-level keys are options of the table, its sections go to `sections`. An unknown
//! key is a fault. Called by `load`.

use super::{
    fault::Location,
    field::{Field, Source},
    options::{Draft, OPTIONS},
    sections,
};
use std::{fs::File, io::Read, path::Path};
use toml::de::DeTable;

/// The largest file: thousands of rules for rooms fit into it.
const BYTES_MAX: u64 = 1 << 20;

/// Takes over what a file says. `false`: it could not be read, so what contradicts is not known.
pub(super) fn read(path: &Path, draft: &mut Draft) -> bool {
    let name = path.display().to_string();
    let text = match text_of(path) {
        Ok(text) => text,
        Err(problem) => {
            draft.faults.add(&Location::File { path: name, line: 0, key: String::new() }, problem);
            return false;
        }
    };
    let source = Source { path: &name, text: &text };
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in &errors {
        // The error's own text would show the whole line, which may hold a password.
        let location = source.location(error.span().map_or(0, |span| span.start), String::new());
        draft.faults.add(&location, format_args!("not TOML: {}", error.message()));
    }
    if errors.is_empty() {
        for (key, field) in source.fields("", table.get_ref()) {
            top_level(key, &field, draft);
        }
    }
    errors.is_empty()
}

fn text_of(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("is larger than {BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn top_level(key: &str, field: &Field<'_>, draft: &mut Draft) {
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == key && spec.section.is_empty()) {
        match field.option(spec) {
            Ok(text) => draft.take(spec, &text, field.location()),
            Err(problem) => field.fault(draft, problem),
        }
        return;
    }
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == key) {
        field.fault(draft, format_args!("unknown key here; it belongs under [{}]", spec.section));
        return;
    }
    match key {
        "auth" => sections::auth(field, draft),
        "rooms" => sections::rooms(field, draft),
        "limits" => sections::limits(field, draft),
        _ => field.fault(draft, "unknown key; `fanfare check --reference` lists all keys"),
    }
}
