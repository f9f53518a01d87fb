//! The client commands of the program `fanfare`: `sub`, `pub`, `bench` and `health`. The program reads its command line with
//! [`commands`] and runs a [`ClientCommand`] on a small runtime of its own. The commands speak the public protocol and nothing
//! else: this crate depends on no other crate of the workspace.

mod backoff;
mod bench;
mod cli;
mod event_stream;
mod health;
mod http;
mod ndjson;
mod publish;
mod server;
mod subscribe;
mod subscription;

pub use cli::{ClientCommand, VARIABLES, commands};

use std::{fmt, io::Write as _};

/// What ends a command that did not do what it was asked to.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u8,
    text: String,
}

/// The largest frame, event, line or answer that is read: many times the largest message, since presence lists are frames too.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// The server sends something that is longer.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server sends something longer than {FRAME_BYTES_MAX} bytes")
    }
}

/// The exit code of everything that the other side refused or that could not be reached.
const EXIT_REFUSED: u8 = 1;
/// The exit code of data that is not what it should be: `EX_DATAERR` of sysexits.h.
const EXIT_DATA: u8 = 65;
/// The exit code of a wrong flag, as everywhere in this program: `EX_CONFIG`.
const EXIT_CONFIG: u8 = 78;

impl Failure {
    fn new(code: u8, text: impl fmt::Display) -> Self {
        Self { code, text: text.to_string() }
    }

    fn refused(text: impl fmt::Display) -> Self {
        Self::new(EXIT_REFUSED, text)
    }
}

/// A bearer token or API key; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    /// Any text; the server judges it.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The value of an `Authorization` header, marked as secret.
    fn header(&self) -> Result<hyper::header::HeaderValue, Failure> {
        let mut value = hyper::header::HeaderValue::try_from(format!("Bearer {}", self.0))
            .map_err(|_| Failure::new(EXIT_CONFIG, "the token has characters that no header can hold"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Ends a command: says on standard error what went wrong, if something did.
fn finish(command: &str, result: Result<(), Failure>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            note(command, &failure.text);
            failure.code.into()
        }
    }
}

/// A line on standard error. What comes from the other side cannot move the terminal's cursor; a closed standard error is
/// nobody's concern.
fn note(command: &str, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let _ = writeln!(std::io::stderr(), "fanfare {command}: {text}");
}

/// A line on standard output.
fn print(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
