//! How a command ends and what it prints: results go to standard output, everything else to standard error.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// How long a process waits until standard error has taken a text.
const ERROR_TIME: Duration = Duration::from_secs(1);

/// A text on its way to standard error; the sender is told when it has been written.
type ErrorText = (String, SyncSender<()>);

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
/// cursor.
pub(crate) fn note(command: &str, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    print_error(format!("fanfare {command}: {text}\n"));
}

/// Writes a text to standard error, and waits for a second at most until it is taken: a pipe that nobody reads must not
/// keep a process from its end. What is not taken, or does not fit behind a text that still waits, is lost: there is
/// nowhere else to say it.
pub fn print_error(text: String) {
    static WRITER: OnceLock<Option<SyncSender<ErrorText>>> = OnceLock::new();
    let start = || {
        let (queue, texts) = sync_channel::<ErrorText>(1);
        let write = move || {
            for (text, written) in texts {
                let _ = io::stderr().write_all(text.as_bytes());
                let _ = written.send(()); // the caller may have stopped waiting
            }
        };
        thread::Builder::new().name("stderr".to_owned()).spawn(write).ok().map(|_| queue)
    };
    let Some(queue) = WRITER.get_or_init(start) else {
        let _ = io::stderr().write_all(text.as_bytes()); // the operating system refuses a thread
        return;
    };
    let (written, wait) = sync_channel(1);
    if queue.try_send((text, written)).is_ok() {
        let _ = wait.recv_timeout(ERROR_TIME);
    }
}

/// Prints a line on standard output and flushes it. It fails when the reader of a pipeline has ended.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::refused(format_args!("output: {error}")))
}
