//! The client commands of the program `fanfare`: `sub`, `pub`, `bench` and `health`. The program makes its command line
//! [`with_client_commands`] and runs a [`ClientCommand`] on a runtime of its own. The commands speak the public protocol and nothing
//! else: this crate depends on no other crate of the workspace.

mod bench;
mod cli;
mod connection;
mod health;
mod http;
mod output;
mod publish;
mod subscribe;
mod subscription;
mod tls;
mod url;

pub use cli::{ClientCommand, VARIABLES, with_client_commands};
