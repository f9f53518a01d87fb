//! WebSocket: the handshake, and parsing what clients send. [`Wire`] feeds the library tungstenite bytes that were
//! already received and collects its pongs and close replies in memory. These go through the session's outbox, which
//! keeps them in order with other frames. All other outgoing frames are encoded by the shard and do not pass through
//! tungstenite.

use super::{
    exchange::{Exchange, has_token},
    request::TransportRequest,
};
use crate::{
    http::response_head,
    node::Node,
    policy::{limits::ENVELOPE_BYTES, peer::ConnectionPermit},
    protocol::{FrameShape, close::CloseReason, error::Refusal},
    shard::{Opening, SessionRef, Shard},
};
use bytes::{Bytes, BytesMut};
use hyper::{
    Request, Response, StatusCode, Version, body,
    header::{self, HeaderValue},
};
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, Write},
    rc::Rc,
};
use tokio::net::TcpStream;
use tungstenite::{
    Error, Message, Utf8Bytes,
    error::CapacityError,
    handshake::derive_accept_key,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

const SUBPROTOCOL: &str = "fanfare.v1";
/// The first size of tungstenite's read buffer, which grows with the frames of its client. There is one per connection,
/// so it starts small to save memory; socket reads are large all the same, because they go into [`SCRATCH`] first.
const BUFFER_BYTES: usize = 128;

thread_local! {
    /// The buffer into which a shard reads its sockets, one after the other.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// A handshake that may be completed.
pub(super) struct ReadyWebSocket {
    asked: TransportRequest,
    permit: Option<ConnectionPermit>,
    response: Response<()>,
}

/// Checks the handshake of RFC 6455 section 4.2.1, and whether the connection limits allow one more session.
pub(super) fn prepare(
    node: &Node,
    exchange: &Exchange,
    asked: TransportRequest,
    request: &Request<body::Incoming>,
) -> Result<ReadyWebSocket, Refusal> {
    if request.version() != Version::HTTP_11 {
        return Err(Refusal::bad_request("WebSocket needs HTTP/1.1"));
    }
    if node.drain.is_draining() {
        return Err(Refusal::draining());
    }
    let headers = request.headers();
    if !has_token(headers, &header::UPGRADE, "websocket") || !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(Refusal::bad_request("this path is for WebSocket: ask for an upgrade"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::bad_request("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key has 24 characters"))?;
    let permit = node.permit_connection(exchange.client)?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(ReadyWebSocket { asked, permit, response: exchange.finish.response(response) })
}

impl ReadyWebSocket {
    /// Opens a session on the socket. `early` are client bytes that were read together with the handshake. Reading
    /// continues in a new, small task; the HTTP task would keep its larger future in memory for the life of the
    /// connection.
    pub(super) fn open(self, shard: Rc<Shard>, socket: TcpStream, early: Bytes) {
        let socket = Rc::new(socket);
        // The 101 response is the first thing in the session's outbox.
        let head = response_head(&self.response).freeze();
        let opening = Opening { shape: FrameShape::WebSocket, head, rooms: Vec::new() };
        let who = shard.open(Rc::clone(&socket), self.permit, opening);
        match self.asked.joins() {
            Ok(joins) => joins.into_iter().for_each(|(room, options)| shard.join_by_url(who, room, options)),
            Err(refusal) => shard.refuse_url(who, refusal),
        }
        let codec = codec(shard.node.limits.message_bytes);
        tokio::task::spawn_local(read(shard, who, socket, codec, early));
    }
}

/// The result of parsing the next bytes of a client.
enum Incoming {
    Text(Utf8Bytes),
    /// The bytes hold no further complete frame.
    NeedMore,
    /// A ping, which tungstenite has answered, or a pong.
    Control,
    Closed(CloseReason),
}

/// The parser of what one client sends.
fn codec(message_bytes: usize) -> WebSocketContext {
    let limit = Some(message_bytes + ENVELOPE_BYTES);
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(ENVELOPE_BYTES)
        .max_message_size(limit)
        .max_frame_size(limit);
    WebSocketContext::new(Role::Server, Some(config))
}

/// Parses all of `bytes`; `false` when the session is over.
fn feed(codec: &mut WebSocketContext, shard: &Rc<Shard>, who: SessionRef, bytes: &[u8]) -> bool {
    let mut wire = Wire { input: bytes, output: BytesMut::new() };
    loop {
        let read = next(codec, &mut wire);
        let answer = wire.output.split().freeze();
        match read {
            Incoming::Text(text) => shard.receive(who, &text),
            Incoming::NeedMore => return true,
            Incoming::Control => {}
            Incoming::Closed(reason) => {
                // If the client sent a close frame, tungstenite's reply is sent. Otherwise the session sends its own
                // close frame with `reason`.
                shard.close(who, reason, Some(answer).filter(|a| !a.is_empty() && reason == CloseReason::Gone));
                return false;
            }
        }
        if !answer.is_empty() {
            shard.answer_control(who, answer);
        }
    }
}

fn next(codec: &mut WebSocketContext, wire: &mut Wire<'_>) -> Incoming {
    let read = codec.read(wire);
    // Moves a pong, or the reply to a close frame, into `wire.output`. The result matters for pings and pongs only: a
    // message has nothing to flush, and after the reply to a close frame it is always the error `ConnectionClosed`.
    let flushed = codec.flush(wire);
    match read {
        Ok(Message::Text(text)) => Incoming::Text(text),
        Ok(Message::Binary(_)) => Incoming::Closed(CloseReason::NotOurProtocol),
        Ok(Message::Close(_)) => Incoming::Closed(CloseReason::Gone),
        Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => match flushed {
            Ok(()) => Incoming::Control,
            Err(why) => Incoming::Closed(reason(&why)),
        },
        Err(Error::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => Incoming::NeedMore,
        Err(why) => Incoming::Closed(reason(&why)),
    }
}

fn reason(why: &Error) -> CloseReason {
    match why {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseReason::FrameTooLarge,
        Error::Utf8(_) => CloseReason::NotUtf8,
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_) => CloseReason::Gone,
        _ => CloseReason::WebSocketFault,
    }
}

/// What tungstenite takes for the socket: the bytes that have been read, and memory for its replies.
struct Wire<'a> {
    input: &'a [u8],
    output: BytesMut,
}

impl io::Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        io::Read::read(&mut self.input, into)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a session's socket until its end. This future lives as long as the connection, so it is kept small; a test
/// bounds its size.
fn read(
    shard: Rc<Shard>,
    who: SessionRef,
    socket: Rc<TcpStream>,
    mut codec: WebSocketContext,
    early: Bytes,
) -> impl Future<Output = ()> {
    // Not an `async fn`, whose future would store the arguments twice.
    let mut open = early.is_empty() || feed(&mut codec, &shard, who, &early);
    drop(early);
    async move {
        // `poll_read_ready` stores its waker in the socket; the future of `readable()` would store another one.
        while let Ok(()) = poll_fn(|cx| socket.poll_read_ready(cx)).await {
            let mut full = false;
            let more = SCRATCH.with_borrow_mut(|scratch| match socket.try_read(scratch) {
                Ok(0) => false,
                Ok(n) => {
                    full = n == scratch.len();
                    if open {
                        shard.heard(who);
                        open = feed(&mut codec, &shard, who, &scratch[..n]);
                    } // else: the session is over; bytes are read and dropped until the socket ends
                    true
                }
                Err(why) => why.kind() == io::ErrorKind::WouldBlock,
            });
            if !more {
                break;
            }
            if full {
                // More may be waiting: other sessions have their turn first.
                tokio::task::yield_now().await;
            }
        }
        shard.remove(who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function returns, known from its type.
    fn size_of_future<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_costs_a_small_task() {
        // An idle connection needs this task, what its codec allocates, and the shard's `Conn`. tokio adds some 80
        // bytes to the task. `benches/idle.rs` counts all of it.
        let size = size_of_future(read);
        assert!(size <= 320, "{size}");
    }
}
