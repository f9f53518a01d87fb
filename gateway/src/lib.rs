//! The gateway as a library of one function: [`main`] is the whole process, from its arguments to its exit code. The binary
//! only adds the allocator. `bench` is for `benches/`.

mod admin;
mod api;
mod app;
#[doc(hidden)]
pub mod bench;
mod cli;
mod config;
mod http;
mod node;
mod policy;
mod protocol;
mod random;
mod session;
mod shard;
mod time;
mod transport;

use cli::Invocation;
use config::{Config, LogFormat};
use std::process::ExitCode;

/// `EX_UNAVAILABLE` of sysexits.h: a port is in use, or Redis cannot be reached.
const UNAVAILABLE: u8 = 69;

/// Runs the process. Exit codes: 0; 1 and 65 of the client commands; 69 when a port or Redis is not available; 78 for a
/// wrong flag or configuration.
#[must_use]
pub fn main() -> ExitCode {
    let invocation = match cli::invocation() {
        Ok(invocation) => invocation,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("fanfare: the operating system refuses a runtime: {why}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    match invocation {
        Invocation::Serve(config) => {
            log(&config);
            match runtime.block_on(app::run(*config)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    eprintln!("fanfare: {why}");
                    ExitCode::from(UNAVAILABLE)
                }
            }
        }
        Invocation::Client(command) => runtime.block_on(command.run()),
    }
}

/// Log lines go to standard error.
fn log(config: &Config) {
    let lines = tracing_subscriber::fmt().with_max_level(config.log_level);
    let lines = lines.with_writer(std::io::stderr).with_target(false);
    match config.log {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}
