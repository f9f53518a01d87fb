//! What a run prints while it runs. Called by the runs and by the tests under load.

use std::io::Write as _;

/// Prints a line to standard error at once; the test harness does not capture it.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
