//! The harness of the whole-process tests: real gateways, a real `redis-server`, a real nginx and typed clients, put
//! together so that a test reads as a sentence. Called by the integration tests in `it/` and by the program in `chaos/`.
//! It reaches the gateway only through its sockets, its files and its exit status, never through its code.

pub mod client;
pub mod cluster;
pub mod crowd;
pub mod dns;
pub mod fault;
pub mod history;
pub mod http;
pub mod load;
pub mod member;
pub mod nginx;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod redis;
mod resp;
pub mod rng;
pub mod scenario;
pub mod scratch;
pub mod sentinel;
pub mod target;
pub mod transport;
pub mod wait;

pub use client::Client;
pub use cluster::{Cluster, Node};
pub use target::Target;
pub use transport::{Frame, RoomRequest, Transport, TransportClient};
