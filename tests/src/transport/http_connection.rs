//! One TCP connection with HTTP/1.1 on it, read as the bytes come: a head, then pieces of a body that may never end.
//! Called by the clients of each transport; it never buffers a body that nobody reads, so that a test can be a slow
//! reader, and every read may be given up and begun again without a loss.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Reply;

/// What is read from the socket at once: small, so that thousands of idle streams cost little.
const READ: usize = 4 << 10;
/// No head and no line of a chunk is longer.
const LINE_MAX: usize = 64 << 10;

/// The first part of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
}

/// See the module's head.
#[derive(Debug)]
pub struct HttpConnection {
    stream: TcpStream,
    buffer: BytesMut,
    rest: Rest,
    is_kept: bool,
}

/// What of an answer is yet to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing: the next thing is the head of another answer.
    Nothing,
    /// So many bytes.
    Length(u64),
    /// A line with the length of a chunk.
    ChunkSize,
    /// So many bytes of a chunk and the line end after it.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// NdjsonStream up to a blank one.
    Trailer,
    /// Everything until the connection ends.
    ToEnd,
}

/// What the buffer holds.
enum Step {
    Piece(Bytes),
    End,
    More,
}

impl Head {
    /// A header's value, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl HttpConnection {
    /// A new connection.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new(), rest: Rest::Nothing, is_kept: true })
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// When the connection has gone.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let peer = self.stream.peer_addr()?;
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: {peer}\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.stream.write_all(text.as_bytes()).await
    }

    /// The head of the answer; its body is next.
    ///
    /// # Errors
    /// When the connection ends before it, or it is none.
    pub async fn head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(place) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break place + 4;
            }
            if self.buffer.len() > LINE_MAX || self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = parse_head(&self.buffer.split_to(end)).ok_or(io::ErrorKind::InvalidData)?;
        self.rest = rest(&head);
        self.is_kept = self.rest != Rest::ToEnd && !head.header("connection").eq_ignore_ascii_case("close");
        Ok(head)
    }

    /// The next bytes of the body; nothing at its proper end.
    ///
    /// # Errors
    /// When the connection ends before the body does.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.take()? {
                Step::Piece(bytes) => return Ok(Some(bytes)),
                Step::End => return Ok(None),
                Step::More => {}
            }
            if self.fill().await? == 0 {
                if self.rest != Rest::ToEnd {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.rest = Rest::Nothing;
            }
        }
    }

    /// The rest of the body as an answer like `http` gives; only for what is known to end.
    ///
    /// # Errors
    /// When the connection ends before the body does.
    pub async fn reply(mut self, head: Head) -> io::Result<Reply> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(Reply { status: head.status, headers: head.headers, text })
    }

    /// Whether another request may follow on this connection.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.is_kept && self.rest == Rest::Nothing
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ);
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Takes from the buffer what can be taken.
    fn take(&mut self) -> io::Result<Step> {
        loop {
            match self.rest {
                Rest::Nothing | Rest::Length(0) => {
                    self.rest = Rest::Nothing;
                    return Ok(Step::End);
                }
                Rest::ToEnd | Rest::Length(_) | Rest::Chunk(_) if self.buffer.is_empty() => return Ok(Step::More),
                Rest::ToEnd => return Ok(Step::Piece(self.buffer.split().freeze())),
                Rest::Length(left) => {
                    let (piece, left) = self.split(left);
                    self.rest = Rest::Length(left);
                    return Ok(Step::Piece(piece));
                }
                Rest::Chunk(left) => {
                    let (piece, left) = self.split(left);
                    self.rest = if left == 0 { Rest::ChunkEnd } else { Rest::Chunk(left) };
                    return Ok(Step::Piece(piece));
                }
                Rest::ChunkSize | Rest::ChunkEnd | Rest::Trailer => {
                    let Some(line) = self.line()? else { return Ok(Step::More) };
                    self.rest = match self.rest {
                        Rest::ChunkEnd => Rest::ChunkSize,
                        Rest::Trailer if line.is_empty() => Rest::Nothing,
                        Rest::Trailer => Rest::Trailer,
                        _ => match chunk_size(&line).ok_or(io::ErrorKind::InvalidData)? {
                            0 => Rest::Trailer,
                            size => Rest::Chunk(size),
                        },
                    };
                }
            }
        }
    }

    /// Up to `most` bytes of the buffer, and how many of `most` are still due.
    fn split(&mut self, most: u64) -> (Bytes, u64) {
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        (self.buffer.split_to(count).freeze(), most - count as u64)
    }

    /// A line without its end, once it is complete.
    fn line(&mut self) -> io::Result<Option<Bytes>> {
        let Some(place) = self.buffer.windows(2).position(|window| window == b"\r\n") else {
            return if self.buffer.len() > LINE_MAX { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
        };
        let line = self.buffer.split_to(place).freeze();
        self.buffer.advance(2);
        Ok(Some(line))
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(line).ok()?.split(';').next()?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// How the body of an answer to a GET ends (RFC 9112, section 6.3).
fn rest(head: &Head) -> Rest {
    if matches!(head.status, 204 | 304) {
        return Rest::Nothing;
    }
    if head.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
        return Rest::ChunkSize;
    }
    head.header("content-length").parse().map_or(Rest::ToEnd, Rest::Length)
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some(Head { status, headers })
}

#[cfg(test)]
mod tests {
    use super::HttpConnection;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// What a client reads of these bytes, which a server writes in pieces of `step`: the status, the body, and whether
    /// it ended properly.
    async fn read(bytes: &'static [u8], step: usize) -> (u16, Vec<u8>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut wire = HttpConnection::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.set_nodelay(true).unwrap();
        let writer = tokio::spawn(async move {
            for piece in bytes.chunks(step) {
                peer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let head = wire.head().await.unwrap();
        let mut body = Vec::new();
        let is_whole = loop {
            match wire.piece().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        writer.await.unwrap();
        (head.status, body, is_whole)
    }

    #[tokio::test]
    async fn bodies_end_where_their_head_says() {
        for step in [1, 7, 1_000] {
            let length = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            assert_eq!(read(length, step).await, (200, b"hello".to_vec(), true));
            let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello";
            assert_eq!(read(cut, step).await, (200, b"hello".to_vec(), false));
            let to_end = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
            assert_eq!(read(to_end, step).await, (200, b"hello".to_vec(), true));
            let none = b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n";
            assert_eq!(read(none, step).await, (304, Vec::new(), true));
            let chunks =
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=1\r\nlo\r\n0\r\nt: 1\r\n\r\n";
            assert_eq!(read(chunks, step).await, (200, b"hello".to_vec(), true));
            let cut_chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n";
            assert_eq!(read(cut_chunks, step).await, (200, b"hel".to_vec(), false));
        }
    }
}
