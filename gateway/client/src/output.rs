//! How a command ends and what it prints: results go to standard output, everything else to standard error.

use std::{fmt::Display, io::Write as _, process::ExitCode};

/// What ends a command without success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit_code: u8,
    /// The line for the user.
    pub(crate) text: String,
    /// Every attempt will end like this one.
    pub(crate) is_permanent: bool,
}

impl Failure {
    /// The server refused something or could not be reached.
    pub(crate) fn refused(text: impl Display) -> Self {
        Self { exit_code: 1, text: text.to_string(), is_permanent: false }
    }

    /// The data that was given is malformed: `EX_DATAERR` of sysexits.h.
    pub(crate) fn data(text: impl Display) -> Self {
        Self { exit_code: 65, text: text.to_string(), is_permanent: true }
    }

    /// A flag has a wrong value: `EX_CONFIG` of sysexits.h, as everywhere in this program.
    pub(crate) fn config(text: impl Display) -> Self {
        Self { exit_code: 78, text: text.to_string(), is_permanent: true }
    }
}

/// Prints why the command failed, if it did, and gives its exit code.
pub(crate) fn finish(command: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    note(command, &failure.text);
    failure.exit_code.into()
}

/// Prints a line on standard error. Control characters are replaced, so that a server's text cannot move the terminal's
/// cursor. A closed standard error is ignored: there is nowhere else to report it.
pub(crate) fn note(command: &str, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let _ = writeln!(std::io::stderr(), "fanfare {command}: {text}");
}

/// Prints a line on standard output and flushes it. It fails when the reader of a pipeline has ended.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::refused(format_args!("output: {error}")))
}
