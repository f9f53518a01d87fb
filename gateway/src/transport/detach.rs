//! How a socket leaves hyper. WebSockets, streams and polls that wait last for minutes, and hyper holds buffers for
//! each of its connections. So the handler of such a request never responds: it names a value that takes the socket
//! over, and the task that polls hyper's connection takes the connection apart and hands the socket to that value.
//! Called by `http`; it knows no transport.

use hyper::rt;
use hyper_util::rt::TokioIo;
use std::{
    cell::{Cell, RefCell},
    future::{pending, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;

/// What the handler of a request and the task that polls its connection share. `T` names what takes the socket over.
pub(super) struct Detach<T> {
    takeover: RefCell<Option<T>>,
    /// The socket did not take all of what hyper wrote last.
    is_blocked: Cell<bool>,
}

impl<T> Detach<T> {
    pub(super) fn new() -> Self {
        Self { takeover: RefCell::new(None), is_blocked: Cell::new(false) }
    }

    /// For the handler of a request: stores `takeover`, which is to get the socket, and never returns. A client may
    /// send this request before it has read the responses to earlier ones, so this waits until those are written.
    pub(super) async fn hand_over<R>(&self, takeover: T) -> R {
        tokio::task::yield_now().await; // hyper writes earlier responses meanwhile
        poll_fn(|_| if self.is_blocked.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        self.takeover.replace(Some(takeover));
        pending().await
    }

    /// For the task that polls the connection: what takes the socket over, if a handler has stored it.
    pub(super) fn take(&self) -> Option<T> {
        self.takeover.take()
    }
}

/// A socket that tells its [`Detach`] whether it took everything that hyper wrote.
pub(super) struct TrackedIo<T> {
    socket: TokioIo<TcpStream>,
    detach: Rc<Detach<T>>,
}

impl<T> TrackedIo<T> {
    pub(super) fn new(socket: TcpStream, detach: Rc<Detach<T>>) -> Self {
        Self { socket: TokioIo::new(socket), detach }
    }

    pub(super) fn into_socket(self) -> TcpStream {
        self.socket.into_inner()
    }

    fn track<R>(&self, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        self.detach.is_blocked.set(written.is_pending());
        written
    }
}

impl<T> rt::Read for TrackedIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl<T> rt::Write for TrackedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.track(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.track(written)
    }
}
