//! Transports: bytes and HTTP status only. `acceptor` gives sockets to shards; `http` serves one until a transport takes
//! it over or it ends; `door` reads which transport a request asks for.
//!
//! | file | |
//! |---|---|
//! | `ws` | what WebSocket clients send |
//! | `stream` | server-sent events and HTTP streaming: opening, and the end of the socket |
//! | `poll`, `poll_answer` | long and short polling: waiting, and what is said |
//! | `post` | commands of sessions that cannot send |
//! | `head` | the head of a response that hyper does not write |
//!
//! All but WebSocket's frames go out through the session's outbox, like those: a stream's socket leaves hyper, and with
//! it hyper's buffers. So does a poll's while it waits.

mod acceptor;
mod http;
mod poll;
mod post;
mod request;
mod stream;
mod ws;

pub(crate) use acceptor::{Arrival, ShardHandle, WAITING_MAX, accept};
pub(crate) use http::serve;
