//! What is wrong with a configuration, and where. The layers of `config` collect faults; the command line prints them,
//! all at once. It never holds a value that may be a secret: whoever adds a fault leaves those out.

use std::fmt;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A flag, by its name without dashes.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A place in the file; the key is empty where the fault is not one key's.
    File {
        /// As it was given.
        path: String,
        /// From 1.
        line: usize,
        /// With its section: `limits.message_bytes`.
        key: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Environment(name) => f.write_str(name),
            Self::File { path, line, key } if key.is_empty() => write!(f, "{path}:{line}"),
            Self::File { path, line, key } => write!(f, "{path}:{line}: {key}"),
        }
    }
}

/// Every fault found, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults(Vec<String>);

impl Faults {
    /// Notes one; control characters in what a user wrote do not reach the terminal.
    pub(super) fn add(&mut self, place: impl fmt::Display, problem: impl fmt::Display) {
        let line = format!("{place}: {problem}");
        self.0.push(line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect());
    }

    /// Adds those found elsewhere.
    pub(super) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// `Err` if there is at least one.
    pub(super) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The faults, in the order in which they were found.
    #[cfg(test)]
    pub(super) fn lines(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Faults {
    /// A line each, without a final line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}
