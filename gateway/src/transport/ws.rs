//! WebSocket: the handshake, and what clients send. tungstenite parses it, over an adapter that reads from bytes already
//! there and whose write side is the outbox, so that its pongs leave in order with our shared frames. What goes out to
//! clients otherwise never passes through here.

use crate::{
    policy::limits::ENVELOPE_BYTES,
    protocol::close::CloseReason,
    shard::{SessionRef, Shard},
};
use bytes::{Bytes, BytesMut};
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, Write},
    rc::Rc,
};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{
    Error, Message, Utf8Bytes,
    error::CapacityError,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

/// tungstenite's buffer per connection: it holds what is left of an incomplete frame and is refilled from [`SCRATCH`],
/// so it need not be large to be fast.
const BUFFER_BYTES: usize = 128;

thread_local! {
    /// Where a shard's sockets are read into, one after the other.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// What answers `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
pub(super) fn accept_key(key: &[u8]) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key)
}

/// The codec's state for one connection.
pub(super) struct Reader {
    codec: WebSocketContext,
}

/// What a client's bytes come to.
enum Incoming {
    Text(Utf8Bytes),
    /// Nothing more in these bytes.
    End,
    /// A ping was answered, or a pong came.
    Control,
    Closed(CloseReason),
}

impl Reader {
    pub(super) fn new(message_bytes: usize) -> Self {
        let limit = Some(message_bytes + ENVELOPE_BYTES);
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(ENVELOPE_BYTES)
            .max_message_size(limit)
            .max_frame_size(limit);
        Self { codec: WebSocketContext::new(Role::Server, Some(config)) }
    }

    /// Parses `bytes` to their end; `false` when the session is over.
    pub(super) fn feed(&mut self, shard: &Rc<Shard>, who: SessionRef, bytes: &[u8]) -> bool {
        let mut wire = Wire { input: bytes, output: BytesMut::new() };
        loop {
            let read = self.next(&mut wire);
            let answer = wire.output.split().freeze();
            match read {
                Incoming::Text(text) => shard.receive(who, &text),
                Incoming::End => return true,
                Incoming::Control => {}
                Incoming::Closed(reason) => {
                    // The codec's own close frame answers the client's; where it has none, ours says why.
                    shard.close(who, reason, Some(answer).filter(|a| !a.is_empty() && reason == CloseReason::Gone));
                    return false;
                }
            }
            if !answer.is_empty() {
                shard.answer_control(who, answer);
            }
        }
    }

    fn next(&mut self, wire: &mut Wire<'_>) -> Incoming {
        let read = self.codec.read(wire);
        // A pong or the answer to a close waits in the codec until it is flushed; it goes to memory here.
        let flushed = self.codec.flush(wire);
        match read {
            Ok(Message::Text(text)) => Incoming::Text(text),
            Ok(Message::Binary(_)) => Incoming::Closed(CloseReason::NotOurProtocol),
            Ok(Message::Close(_)) => Incoming::Closed(CloseReason::Gone),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => match flushed {
                Ok(()) => Incoming::Control,
                Err(why) => Incoming::Closed(reason(&why)),
            },
            Err(Error::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => Incoming::End,
            Err(why) => Incoming::Closed(reason(&why)),
        }
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

/// Bytes that have been read, and room for what the codec answers.
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

/// Reads a session's socket until its end. `early` came with the handshake. This future lives as long as the
/// connection does: it is kept small, and a test bounds it.
pub(super) fn read(
    shard: Rc<Shard>,
    who: SessionRef,
    socket: Rc<TcpStream>,
    mut reader: Reader,
    early: Bytes,
) -> impl Future<Output = ()> {
    // Not an `async fn`: that one would keep room for its arguments twice.
    let mut open = early.is_empty() || reader.feed(&shard, who, &early);
    drop(early);
    async move {
        // `poll_read_ready` keeps one waker in the socket's own slot; `readable()` would be a larger future.
        while let Ok(()) = poll_fn(|cx| socket.poll_read_ready(cx)).await {
            let mut full = false;
            let more = SCRATCH.with_borrow_mut(|scratch| match socket.try_read(scratch) {
                Ok(0) => false,
                Ok(n) => {
                    full = n == scratch.len();
                    if open {
                        shard.heard(who);
                        open = reader.feed(&shard, who, &scratch[..n]);
                    } // else: the session is over, what comes until the client's end is not looked at
                    true
                }
                Err(why) => why.kind() == io::ErrorKind::WouldBlock,
            });
            if !more {
                break;
            }
            if full {
                tokio::task::yield_now().await;
            }
        }
        shard.remove(who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function makes, by its type alone.
    fn size_of_future<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_costs_a_small_task() {
        // What an idle connection holds is this task, what its `Reader` allocates, and the shard's `Conn`; the rest of the
        // task, tokio's, is some 80 bytes. `benches/idle.rs` counts all of it.
        let size = size_of_future(read);
        assert!(size <= 320, "{size}");
    }
}
