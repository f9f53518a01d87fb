//! Transports: bytes and HTTP status only. What clients ask for is the shard's business, and what messages look like is
//! `protocol`'s.
//!
//! | file | |
//! |---|---|
//! | `acceptor` | accepts sockets and gives each to a shard |
//! | `http` | serves a socket as HTTP until a transport takes it over |
//! | `exchange` | what every request has to pass: origin, client address |
//! | `request` | which transport a request asks for, and for which rooms |
//! | `detach` | how a socket leaves hyper |
//! | `ws` | WebSocket: the handshake, and what clients send |
//! | `stream` | server-sent events and HTTP streaming |
//! | `poll` | long and short polling |
//! | `post` | commands of sessions that cannot send |
//!
//! Three transports take sockets over, each in two steps: `prepare` checks a request and returns what is ready to be
//! opened (`ReadyWebSocket`, `ReadyStream`, `poll::Ready`), and its `open` makes a session, or a poll that waits, of the
//! socket once hyper has given it up.

mod acceptor;
mod detach;
mod exchange;
mod http;
mod poll;
mod post;
mod request;
mod stream;
mod ws;

pub(crate) use acceptor::{AcceptedSocket, ShardHandle, WAITING_MAX, accept};
pub(crate) use http::HttpServer;
