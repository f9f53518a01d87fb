//! Clients of all five transports. `connection` receives the texts of any of them, and `client` is the type that tests
//! use: it parses frames, sends commands and waits with a deadline. The other files implement one transport or one
//! value each. Called by `client`, `member`, the fault runs and the tests. Nothing here reconnects by itself.

pub mod client;
pub mod connection;
pub mod ended;
pub mod http_connection;
pub mod kind;
pub mod ndjson;
pub mod poll;
pub mod poller;
pub mod request;
pub mod sse;
pub mod sse_parser;
pub mod websocket;

pub use crate::http::Refused;
pub use client::{Frame, TransportClient};
pub use connection::{Connection, Received};
pub use ended::Ended;
pub use kind::Transport;
pub use request::{RoomRequest, encode};
