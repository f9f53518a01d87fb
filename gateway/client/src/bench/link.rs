//! One WebSocket connection of a load run: upgraded by hand, read into a scratch buffer that all links share, and scanned
//! there (`frame` says why no library does this). Members and publishers own one each. An idle link owns no buffer. It
//! knows nothing of rooms.

use super::frame::{self, Frame};
use crate::{
    connection::{Connection, Gateway, GatewayOptions},
    output::Failure,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf, split};

/// Room for the largest frame behind the beginning of another one.
pub(super) const SCRATCH_BYTES: usize = 2 * frame::FRAME_BYTES_MAX;
/// The longest response to the upgrade, in bytes; a gateway's has some 200.
const RESPONSE_BYTES_MAX: usize = 8192;

/// A node of the gateway: its address, and the request that opens a WebSocket there.
pub(super) struct BenchNode {
    gateway: Gateway,
    pub(super) address: SocketAddr,
    request: Vec<u8>,
}

impl BenchNode {
    /// Resolves the URL once for all connections.
    pub(super) async fn find(options: &GatewayOptions) -> Result<Self, Failure> {
        let gateway = Gateway::new(options)?;
        let address = gateway.resolve().await?[0];
        // The key is the example of RFC 6455: a load run needs no protection from caches.
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            gateway.url.path("/ws"),
            gateway.url.authority,
        )
        .into_bytes();
        if let Some(token) = &gateway.authorization {
            request.extend_from_slice(b"Authorization: ");
            request.extend_from_slice(token.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        Ok(Self { gateway, address, request })
    }

    /// Connects and upgrades.
    pub(super) async fn open(&self, from: Option<IpAddr>) -> Result<Link<Connection>, String> {
        let mut stream = self.gateway.connect_to(self.address, from).await.map_err(|failure| failure.text)?;
        let rest = upgrade(&mut stream, &self.request).await.map_err(|why| format!("{}: {why}", self.address))?;
        Ok(Link { stream, rest, pongs: Vec::new() })
    }
}

/// Requests the WebSocket; gives the bytes that came behind the response.
async fn upgrade(stream: &mut Connection, request: &[u8]) -> Result<Vec<u8>, String> {
    write(stream, request).await?;
    let mut response = Vec::with_capacity(512);
    let end = loop {
        let read = stream.read_buf(&mut response).await.map_err(|error| error.to_string())?;
        if let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if read == 0 || response.len() > RESPONSE_BYTES_MAX {
            return Err("no response to the WebSocket handshake".to_owned());
        }
    };
    if !response.starts_with(b"HTTP/1.1 101 ") {
        let status = String::from_utf8_lossy(response.split(|byte| *byte == b'\r').next().unwrap_or_default());
        let hint = if status.contains(" 429") { "; `[limits] connections_per_ip` may be too low" } else { "" };
        return Err(format!("the WebSocket was refused: {status}{hint}"));
    }
    Ok(response[end + 4..].to_vec())
}

/// Writes bytes to the network: TLS keeps some of them back until it is flushed.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), String> {
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    written.await.map_err(|error: io::Error| format!("the connection broke: {error}"))
}

/// A connection, or the half of it that is read.
#[derive(Debug)]
pub(super) struct Link<R> {
    stream: R,
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
    /// Answers to pings, which its owner sends.
    pongs: Vec<u8>,
}

impl Link<Connection> {
    /// Its two halves.
    pub(super) fn split(self) -> (Link<ReadHalf<Connection>>, WriteHalf<Connection>) {
        let (read, write) = split(self.stream);
        (Link { stream: read, rest: self.rest, pongs: self.pongs }, write)
    }

    /// Sends bytes, after the answers to pings.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut pongs = self.take_pongs();
        pongs.extend_from_slice(bytes);
        if pongs.is_empty() { Ok(()) } else { write(&mut self.stream, &pongs).await }
    }
}

impl<R: AsyncRead + Unpin> Link<R> {
    /// The answers to the pings that have been read since the last call.
    pub(super) fn take_pongs(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pongs)
    }

    /// Gives the frames that came together with the response to the handshake. The owner calls it once, before
    /// [`Self::poll`].
    pub(super) fn take_early(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        let early = std::mem::take(&mut self.rest);
        let used = self.scan(&early, each)?;
        self.rest.extend_from_slice(&early[used..]);
        Ok(())
    }

    /// Reads once and gives the text of every whole text frame to `each`.
    ///
    /// It calls `poll_read` and not `try_read` after readiness: a short read tells tokio that the socket is empty, which
    /// saves the second system call that would only say so.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        each: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), String>> {
        let kept = self.rest.len();
        let mut free = ReadBuf::new(&mut scratch[kept..]);
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(context, &mut free)) {
            return Poll::Ready(Err(format!("the connection broke: {error}")));
        }
        let filled = kept + free.filled().len();
        if filled == kept {
            return Poll::Ready(Err("the gateway ended the connection".to_owned()));
        }
        scratch[..kept].copy_from_slice(&self.rest);
        self.rest.clear();
        let used = match self.scan(&scratch[..filled], each) {
            Ok(used) => used,
            Err(why) => return Poll::Ready(Err(why)),
        };
        // The buffer that a large frame needed is given back.
        if used == filled && kept > 4096 {
            self.rest = Vec::new();
        }
        self.rest.extend_from_slice(&scratch[used..filled]);
        Poll::Ready(Ok(()))
    }

    /// Gives the length of the whole frames at the beginning of `bytes`.
    fn scan(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<usize, String> {
        let mut used = 0;
        while let Some((frame, length)) = frame::next(&bytes[used..])? {
            match frame {
                Frame::Text(text) => each(text),
                Frame::Ping(payload) => frame::pong(payload, &mut self.pongs),
                Frame::Pong => {}
                Frame::Close(code, reason) => {
                    return Err(format!("closed with {code} {}", String::from_utf8_lossy(reason)));
                }
            }
            used += length;
        }
        Ok(used)
    }
}
