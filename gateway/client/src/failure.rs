//! Why a command ends without success: the text for the user and the exit code. Every module of the crate makes failures;
//! `output` prints them.

use std::fmt;

/// The exit code when the server refused something or could not be reached.
const EXIT_REFUSED: u8 = 1;
/// The exit code of malformed data: `EX_DATAERR` of sysexits.h.
const EXIT_DATA: u8 = 65;
/// The exit code of a wrong flag, as everywhere in this program: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// What ends a command without success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// The line for the user.
    pub(crate) text: String,
}

impl Failure {
    /// The server refused something or could not be reached.
    pub(crate) fn refused(text: impl fmt::Display) -> Self {
        Self { code: EXIT_REFUSED, text: text.to_string() }
    }

    /// The data that was given is malformed.
    pub(crate) fn data(text: impl fmt::Display) -> Self {
        Self { code: EXIT_DATA, text: text.to_string() }
    }

    /// A flag has a wrong value.
    pub(crate) fn config(text: impl fmt::Display) -> Self {
        Self { code: EXIT_CONFIG, text: text.to_string() }
    }
}
