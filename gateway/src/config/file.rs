//! The configuration file as a layer. [`read`] takes its top-level keys from the option table and hands its sections to
//! `sections`; [`Field`] is a value that knows where it stands. Every key is known or a fault. It reads one file, once.

use super::{
    fault::Place,
    options::{Draft, Kind, OPTIONS, Spec},
    sections,
};
use std::{fs::File, io::Read, path::Path};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A configuration that is larger is a mistake: thousands of room rules fit into this.
const BYTES_MAX: u64 = 1 << 20;

/// Takes over what a file says; whether it could be read at all.
pub(super) fn read(path: &Path, draft: &mut Draft) -> bool {
    let name = path.display().to_string();
    let text = match text_of(path) {
        Ok(text) => text,
        Err(problem) => {
            draft.faults.add(name, problem);
            return false;
        }
    };
    let source = Source { path: &name, text: &text };
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in &errors {
        // The error's own text would show the line, and with it a password that may stand there.
        let place = source.place(error.span().map_or(0, |span| span.start), String::new());
        draft.faults.add(place, format_args!("not TOML: {}", error.message()));
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
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == key) {
        match field.option(spec) {
            Ok(text) => draft.take(spec, &text, field.place()),
            Err(problem) => field.fault(draft, problem),
        }
        return;
    }
    match key {
        "auth" => sections::auth(field, draft),
        "rooms" => sections::rooms(field, draft),
        "limits" => sections::limits(field, draft),
        _ => field.fault(draft, "unknown key; docs/configuration.md lists those there are"),
    }
}

/// The text being read, to turn offsets into lines.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a str,
    text: &'a str,
}

impl<'a> Source<'a> {
    fn place(&self, offset: usize, key: String) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Place::File { path: self.path.to_owned(), line, key }
    }

    /// A table's keys and values in the order of the file.
    fn fields(&self, section: &str, table: &'a DeTable<'a>) -> Vec<(&'a str, Field<'a>)> {
        let mut fields: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().as_ref();
                let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
                (name, self.field(path, key.span().start, value))
            })
            .collect();
        fields.sort_by_key(|(_, field)| field.offset);
        fields
    }

    fn field(&self, key: String, offset: usize, value: &'a Spanned<DeValue<'a>>) -> Field<'a> {
        Field { source: *self, key, offset, value: value.get_ref() }
    }
}

/// A value of the file and where it stands.
pub(super) struct Field<'a> {
    source: Source<'a>,
    key: String,
    offset: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Field<'a> {
    /// Where it stands.
    pub(super) fn place(&self) -> Place {
        self.source.place(self.offset, self.key.clone())
    }

    /// Notes that it is wrong.
    pub(super) fn fault(&self, draft: &mut Draft, problem: impl std::fmt::Display) {
        draft.faults.add(self.place(), problem);
    }

    /// What was read from it, or `None` and a fault.
    pub(super) fn accept<T>(&self, draft: &mut Draft, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.fault(draft, problem)).ok()
    }

    /// A string.
    pub(super) fn text(&self) -> Result<&'a str, String> {
        self.value.as_str().ok_or_else(|| self.not("a string"))
    }

    /// An integer, in decimal digits.
    pub(super) fn number(&self) -> Result<String, String> {
        let integer = self.value.as_integer().ok_or_else(|| self.not("an integer"))?;
        let number = i128::from_str_radix(integer.as_str(), integer.radix());
        number.map(|number| number.to_string()).map_err(|_| "is too large a number".to_owned())
    }

    /// A boolean.
    pub(super) fn switch(&self) -> Result<bool, String> {
        self.value.as_bool().ok_or_else(|| self.not("true or false"))
    }

    /// A table's keys and values.
    pub(super) fn table(&self) -> Result<Vec<(&'a str, Self)>, String> {
        let table = self.value.as_table().ok_or_else(|| self.not("a table"))?;
        Ok(self.source.fields(&self.key, table))
    }

    /// An array's elements.
    pub(super) fn items(&self) -> Result<Vec<Self>, String> {
        let array = self.value.as_array().ok_or_else(|| self.not("an array"))?;
        let named = array
            .iter()
            .enumerate()
            .map(|(i, item)| self.source.field(format!("{}[{i}]", self.key), item.span().start, item));
        Ok(named.collect())
    }

    /// The text that the option's row reads, if the value is of the option's kind.
    fn option(&self, spec: &Spec) -> Result<String, String> {
        match spec.kind {
            Kind::Text => self.text().map(str::to_owned),
            Kind::Number => self.number(),
            Kind::Switch => self.switch().map(|on| on.to_string()),
            Kind::List if self.value.is_str() => self.text().map(str::to_owned),
            Kind::List => {
                let items = self.items().map_err(|_| self.not("a string or an array of strings"))?;
                let texts: Result<Vec<_>, _> = items.iter().map(Field::text).collect();
                texts.map(|texts| texts.join(" "))
            }
        }
    }

    fn not(&self, expected: &str) -> String {
        format!("must be {expected}, not {}", self.value.type_str())
    }
}
