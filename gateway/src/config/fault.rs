//! What is wrong with a configuration, and where. The layers of `config` collect faults, the command line prints them. A
//! fault never repeats a value that may be a secret: those who add it leave the value out.

use std::fmt;

/// The most faults that are printed. A file that is not TOML has one in nearly every line.
const PRINTED_MAX: usize = 20;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// In a file.
    File {
        /// As it was given.
        path: String,
        /// From 1; 0: the file as a whole.
        line: usize,
        /// With its section: `limits.message_bytes`. Empty if the fault does not belong to a key.
        key: String,
    },
    /// In an environment variable.
    Environment(String),
    /// By a flag, named without dashes.
    Flag(String),
    /// Nowhere: these options have their defaults.
    Options(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Environment(name) | Self::Options(name) => f.write_str(name),
            Self::File { path, line: 0, .. } => f.write_str(path),
            Self::File { path, line, key } if key.is_empty() => write!(f, "{path}:{line}"),
            Self::File { path, line, key } => write!(f, "{path}:{line}: {key}"),
        }
    }
}

/// Every fault found, one line each: those of the file in the order of its lines, then the others as they were found.
/// The number is the line in the file; the largest number if it is not a fault of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults(Vec<(usize, String)>);

impl Faults {
    /// Adds one. Control characters in what a user wrote do not reach the terminal.
    pub(super) fn add(&mut self, location: &Location, problem: impl fmt::Display) {
        let text = format!("{location}: {problem}");
        let text = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let line = if let Location::File { line, .. } = location { *line } else { usize::MAX };
        let index = self.0.partition_point(|(earlier, _)| *earlier <= line);
        self.0.insert(index, (line, text));
    }

    /// `Err` if there is at least one.
    pub(super) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The faults in their order.
    #[cfg(test)]
    pub(super) fn lines(&self) -> Vec<&str> {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }
}

impl fmt::Display for Faults {
    /// A line each, and last how many are not shown and were found in all; without a final line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().take(PRINTED_MAX).map(|(_, text)| text.as_str()).collect::<Vec<_>>();
        f.write_str(&shown.join("\n"))?;
        match self.0.len().checked_sub(PRINTED_MAX) {
            Some(more @ 1..) => write!(f, "\nand {more} more, {} faults in all", self.0.len()),
            _ => Ok(()),
        }
    }
}
