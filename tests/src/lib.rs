//! The harness of the whole-process tests: real gateways, a real `redis-server`, a real nginx and typed clients, put
//! together so that a test reads as a sentence. Called by the integration binary in `it/`; it never reaches into the
//! gateway's own code: everything goes over its sockets, its files and its exit status.

pub mod client;
pub mod cluster;
pub mod crowd;
pub mod dns;
pub mod fault;
pub mod front;
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
pub mod socket;
pub mod transport;
pub mod wait;

pub use client::{Client, Frame};
pub use cluster::{Cluster, Node};
pub use front::Front;
pub use transport::{Ask, Carrier, Tap};
