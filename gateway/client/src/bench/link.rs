//! One WebSocket connection of a load run: opened by hand, read into a scratch buffer that all of them share, and scanned in
//! place (`frame` says why no library does it). Members and publishers own one each. An idle link owns no buffer. It knows
//! nothing of rooms.

use super::frame::{self, Frame};
use crate::{Failure, Token, server::Server};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
};

/// Room for the largest frame behind the beginning of another one.
pub(super) const SCRATCH_BYTES: usize = 2 * frame::FRAME_BYTES_MAX;
/// The longest answer to the upgrade; the gateway's has some 200 bytes.
const ANSWER_BYTES_MAX: usize = 8192;

/// A node: where it is and how it is asked for a WebSocket.
#[derive(Debug)]
pub(super) struct Door {
    address: SocketAddr,
    request: Vec<u8>,
}

impl Door {
    /// Resolves the URL once for all connections.
    pub(super) async fn find(url: &str, token: Option<&Token>) -> Result<Self, Failure> {
        let server = Server::parse(url)?;
        let unknown = |why: &dyn std::fmt::Display| Failure::refused(format_args!("{}: {why}", server.authority));
        let mut addresses = tokio::net::lookup_host(&server.authority).await.map_err(|error| unknown(&error))?;
        let address = addresses.next().ok_or_else(|| unknown(&"no address"))?;
        // The key is RFC 6455's example: nobody in between caches a load run's handshakes.
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            server.path("/ws"),
            server.authority,
        )
        .into_bytes();
        if let Some(token) = token {
            request.extend_from_slice(b"Authorization: ");
            request.extend_from_slice(token.header()?.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        Ok(Self { address, request })
    }

    /// Connects and upgrades.
    pub(super) async fn open(&self, from: Option<IpAddr>) -> Result<Link<TcpStream>, String> {
        let mut stream = self.connect(from).await.map_err(|error| format!("{}: {error}", self.address))?;
        let rest = upgrade(&mut stream, &self.request).await.map_err(|why| format!("{}: {why}", self.address))?;
        Ok(Link { stream, rest })
    }

    async fn connect(&self, from: Option<IpAddr>) -> io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.set_nodelay(true)?;
        socket.connect(self.address).await
    }
}

/// Asks for the WebSocket; gives what came behind the answer.
async fn upgrade(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::with_capacity(512);
    let end = loop {
        let read = stream.read_buf(&mut answer).await.map_err(|error| error.to_string())?;
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if read == 0 || answer.len() > ANSWER_BYTES_MAX {
            return Err("no answer to the WebSocket handshake".to_owned());
        }
    };
    if !answer.starts_with(b"HTTP/1.1 101 ") {
        let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(format!("the WebSocket was refused: {}", String::from_utf8_lossy(status)));
    }
    Ok(answer[end + 4..].to_vec())
}

/// A connection's reading side, or all of it.
#[derive(Debug)]
pub(super) struct Link<R> {
    pub(super) stream: R,
    /// What came of a frame that is not whole yet.
    rest: Vec<u8>,
}

impl Link<TcpStream> {
    /// Its two sides.
    pub(super) fn split(self) -> (Link<tokio::net::tcp::OwnedReadHalf>, tokio::net::tcp::OwnedWriteHalf) {
        let (read, write) = self.stream.into_split();
        (Link { stream: read, rest: self.rest }, write)
    }
}

impl<R: AsyncRead + Unpin> Link<R> {
    /// Frames that came together with the answer to the handshake: to be asked for once, before [`Self::poll`].
    pub(super) fn take_early(&mut self, each: &mut dyn FnMut(&R, Frame<'_>)) -> Result<(), String> {
        let early = std::mem::take(&mut self.rest);
        let used = self.scan(&early, each)?;
        self.rest.extend_from_slice(&early[used..]);
        Ok(())
    }

    /// Reads once and gives all whole frames to `each`.
    ///
    /// One `poll_read` and not readiness with `try_read`: it knows from a short read that the socket is empty and saves the
    /// second system call that would only say so.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        each: &mut dyn FnMut(&R, Frame<'_>),
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
        if used == filled && kept > 4096 {
            self.rest = Vec::new();
        }
        self.rest.extend_from_slice(&scratch[used..filled]);
        Poll::Ready(Ok(()))
    }

    /// How many of the bytes were whole frames.
    fn scan(&self, bytes: &[u8], each: &mut dyn FnMut(&R, Frame<'_>)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((frame, length)) = frame::next(&bytes[used..])? {
            if let Frame::Close(code, reason) = frame {
                return Err(format!("closed with {code} {}", String::from_utf8_lossy(reason)));
            }
            each(&self.stream, frame);
            used += length;
        }
        Ok(used)
    }
}
