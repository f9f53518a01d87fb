//! HTTP streaming over a connection of its own: one JSON text on each line. Called by `connection` and the tests of
//! streams. It does not parse the lines and never reconnects.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::http_connection::HttpConnection;
use super::kind::Transport;
use crate::http::{Refused, Reply};

/// A running stream of lines.
#[derive(Debug)]
pub struct NdjsonStream {
    /// The head of the reply.
    pub head: Reply,
    connection: HttpConnection,
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    lines: VecDeque<String>,
}

impl NdjsonStream {
    /// Opens a stream and reads the head of the reply.
    ///
    /// # Errors
    /// If the reply is not a stream of lines.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let (connection, head) = HttpConnection::stream(address, Transport::Stream, path, headers).await?;
        Ok(Self { head, connection, partial: Vec::new(), lines: VecDeque::new() })
    }

    /// Waits for the next line without a deadline; `None` once the body has ended after a complete line.
    ///
    /// # Errors
    /// If the body ends in another way; the text says how.
    pub async fn next(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            match self.connection.piece().await {
                Ok(Some(piece)) => split(&mut self.partial, &piece, &mut self.lines),
                Ok(None) if self.partial.is_empty() => return Ok(None),
                Ok(None) => return Err("in the middle of a line".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        self.connection.reset();
    }
}

/// Moves the complete lines of `partial` and `bytes` to `lines`. Skips blank lines, which the server sends as a sign of
/// life (the NDJSON specification lets a reader ignore them).
fn split(partial: &mut Vec<u8>, bytes: &[u8], lines: &mut VecDeque<String>) {
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        partial.extend_from_slice(part);
        if partial.pop_if(|last| *last == b'\n').is_some() {
            let line = std::mem::take(partial);
            lines.extend(Some(String::from_utf8_lossy(&line).into_owned()).filter(|line| !line.is_empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;
    use std::collections::VecDeque;

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = "{\"a\":\"\u{2028} …\"}\n\n{}\n{\"cut";
        for step in 1..=text.len() {
            let (mut partial, mut lines) = (Vec::new(), VecDeque::new());
            for piece in text.as_bytes().chunks(step) {
                split(&mut partial, piece, &mut lines);
            }
            assert_eq!(lines, ["{\"a\":\"\u{2028} …\"}", "{}"]);
            assert_eq!(partial, b"{\"cut");
        }
    }
}
