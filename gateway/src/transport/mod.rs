//! Transports: bytes and HTTP status only. `http` serves a socket until a transport takes it over or it ends, after `acceptor` gave it to a shard; `door`
//! reads which transport a request asks for; `ws` is one of them.

mod acceptor;
mod door;
mod http;
mod ws;

pub(crate) use acceptor::{Arrival, ShardDoor, WAITING_MAX, accept};
pub(crate) use http::serve;
