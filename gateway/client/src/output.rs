//! Standard output and standard error of the commands: results go to the one, everything else to the other.

use crate::failure::Failure;
use std::{io::Write as _, process::ExitCode};

/// Prints why the command failed, if it did, and gives its exit code.
pub(crate) fn finish(command: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(command, &failure.text);
            failure.code.into()
        }
    }
}

/// Prints a line on standard error. Control characters are replaced, so that a server's text cannot move the terminal's
/// cursor. A closed standard error is ignored: there is nowhere else to report it.
pub(crate) fn note(command: &str, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let _ = writeln!(std::io::stderr(), "fanfare {command}: {text}");
}

/// Prints a line on standard output and flushes it.
///
/// # Errors
/// Standard output is closed: the reader of a pipeline has ended.
pub(crate) fn print(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
