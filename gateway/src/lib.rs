//! The gateway as a library of one function: [`main`] is the whole process, from its arguments to its exit code. The binary
//! only adds the allocator. `bench` is for `benches/`.

mod admin;
mod api;
mod app;
#[doc(hidden)]
pub mod bench;
mod cli;
mod config;
mod essential;
mod http;
mod log;
mod node;
mod policy;
mod protocol;
mod random;
mod session;
mod shard;
mod signals;
mod time;
mod transport;

use cli::Invocation;
use fanfare_client_cli::print_error;
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
        Err(why) => return unavailable(format_args!("the operating system refuses a runtime: {why}")),
    };
    match invocation {
        Invocation::Serve(config) => {
            let served = runtime.block_on(essential::essential("main", app::run(*config)));
            log::flush();
            served.map_or_else(unavailable, |()| ExitCode::SUCCESS)
        }
        Invocation::Client(command) => runtime.block_on(command.run()),
    }
}

/// Says why the process cannot start.
fn unavailable(why: impl std::fmt::Display) -> ExitCode {
    print_error(format!("fanfare: {why}\n"));
    ExitCode::from(UNAVAILABLE)
}
