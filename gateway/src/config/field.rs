//! A value of the configuration file that knows where it is, so that its faults name the line. Made by `file`, read by
//! `sections`.

use super::{
    fault::Location,
    options::{Draft, Spec, ValueKind},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The text being read, which turns offsets into lines.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn location(&self, offset: usize, key: String) -> Location {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Location::File { path: self.path.to_owned(), line, key }
    }

    /// A table's keys and values in the order of the file.
    pub(super) fn fields(&self, section: &str, table: &'a DeTable<'a>) -> Vec<(&'a str, Field<'a>)> {
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

/// A value of the file and its location.
pub(super) struct Field<'a> {
    source: Source<'a>,
    key: String,
    offset: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Field<'a> {
    pub(super) fn location(&self) -> Location {
        self.source.location(self.offset, self.key.clone())
    }

    /// Notes that it is wrong.
    pub(super) fn fault(&self, draft: &mut Draft, problem: impl std::fmt::Display) {
        draft.faults.add(&self.location(), problem);
    }

    /// The value of a result; an error becomes a fault.
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

    /// The text for the option's row, if the value is of the option's kind.
    pub(super) fn option(&self, spec: &Spec) -> Result<String, String> {
        match spec.kind {
            ValueKind::Text(_) => self.text().map(str::to_owned),
            ValueKind::Number(_) => self.number(),
            ValueKind::Seconds if self.value.is_str() => {
                let text = self.text()?;
                let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
                has_unit
                    .then(|| text.to_owned())
                    .ok_or_else(|| "must be an integer, or a time such as \"20s\"".to_owned())
            }
            ValueKind::Seconds => self.number(),
            ValueKind::Switch => self.switch().map(|on| on.to_string()),
            ValueKind::List(_) if self.value.is_str() => self.text().map(str::to_owned),
            ValueKind::List(_) => {
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
