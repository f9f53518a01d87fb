//! One HTTP/1.1 connection whose reply is read as it arrives: the head, then pieces of a body that may never end. Called
//! by the clients of SSE, HTTP streaming and polling, and by tests that need one connection for several requests. It
//! reads from the socket only while the caller reads, so that a test can be a slow reader.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::kind::Transport;
use crate::http::{Refused, Reply};

/// The least that hyper accepts: its default of some 400 KiB would read ahead of a slow reader.
const BUFFER: usize = 8 << 10;

/// An HTTP/1.1 connection; dropping it closes the socket.
pub struct HttpConnection {
    address: SocketAddr,
    sender: SendRequest<Empty<Bytes>>,
    /// Ends the task that drives the connection: with a RST if it is sent, with a FIN if it is dropped.
    reset: oneshot::Sender<()>,
    /// The head of the reply that is under way.
    response: Option<BoxFuture<'static, hyper::Result<Response<Incoming>>>>,
    /// The rest of the body that is under way.
    body: Option<Incoming>,
}

impl HttpConnection {
    /// Opens a connection.
    ///
    /// # Errors
    /// If no server listens at the address.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let handshake = Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await;
        let (sender, mut connection) = handshake.map_err(io::Error::other)?;
        let (reset, is_reset) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => {}
                reset = is_reset => if reset.is_ok() {
                    let _ = connection.into_parts().io.into_inner().set_zero_linger();
                },
            }
        });
        Ok(Self { address, sender, reset, response: None, body: None })
    }

    /// Opens a connection, sends a GET and expects a stream in reply; returns its head too.
    ///
    /// # Errors
    /// If the reply is anything but a body of the transport's media type.
    pub(super) async fn stream(
        address: SocketAddr,
        transport: Transport,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, Reply), Refused> {
        let media_type = transport.media_type();
        let mut connection = Self::connect(address).await.map_err(Refused::network)?;
        let headers = [&[("Accept", media_type)], headers].concat();
        connection.get(path, &headers).await.map_err(Refused::network)?;
        let head = connection.head().await.map_err(Refused::network)?;
        if head.status != 200 || head.header("content-type").split(';').next() != Some(media_type) {
            let reply = connection.rest(head).await.map_err(Refused::network)?;
            return Err(Refused::Reply(Box::new(reply)));
        }
        Ok((connection, head))
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        self.sender.ready().await.map_err(io::Error::other)?;
        let mut request = Request::get(path).header(HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).map_err(io::Error::other)?;
        self.response = Some(Box::pin(self.sender.send_request(request)));
        Ok(())
    }

    /// Waits for the head of the reply, which is returned with an empty text. May be cancelled and called again.
    ///
    /// # Errors
    /// If the connection ends first, or the head is malformed.
    pub async fn head(&mut self) -> io::Result<Reply> {
        let response = self.response.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let response = response.await.map_err(io::Error::other);
        self.response = None;
        let (head, body) = response?.into_parts();
        self.body = Some(body);
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, text: String::new() })
    }

    /// Waits for the next bytes of the body; `None` at its end. May be cancelled and called again.
    ///
    /// # Errors
    /// If the connection ends before the body does.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(body) = &mut self.body {
            match body.frame().await {
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                None => self.body = None,
            }
        }
        Ok(None)
    }

    /// The whole reply whose head this is. The body must be one that ends.
    ///
    /// # Errors
    /// If the connection ends before the body does.
    pub async fn rest(&mut self, mut head: Reply) -> io::Result<Reply> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        head.text = String::from_utf8_lossy(&body).into_owned();
        Ok(head)
    }

    /// Whether another request can be sent on this connection.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.response.is_none() && self.body.is_none() && !self.sender.is_closed()
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        let _ = self.reset.send(());
    }
}

impl fmt::Debug for HttpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnection").field("address", &self.address).finish_non_exhaustive()
    }
}
