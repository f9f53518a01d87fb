//! HTTP streaming over a connection of its own: a JSON text per line. Called by `line` and the tests of streams; it
//! never reconnects and never parses a line.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::http_connection::{Head, HttpConnection};
use super::{Refused, Transport};

/// A running stream.
#[derive(Debug)]
pub struct NdjsonStream {
    /// How the server began.
    pub head: Head,
    wire: HttpConnection,
    /// The line that has begun.
    begun: Vec<u8>,
    lines: VecDeque<String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A line without its end.
    Line(String),
    /// The body has ended; with what was wrong about that, if anything was.
    End(Option<String>),
}

impl NdjsonStream {
    /// A stream that has begun.
    ///
    /// # Errors
    /// When the answer is no stream of lines.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let mut wire = HttpConnection::connect(address).await.map_err(Refused::network)?;
        let headers = [&[("Accept", Transport::Stream.accepts())], headers].concat();
        wire.get(path, &headers).await.map_err(Refused::network)?;
        let head = wire.head().await.map_err(Refused::network)?;
        if head.status != 200 || head.header("content-type").split(';').next() != Some(Transport::Stream.accepts()) {
            let reply = wire.reply(head).await.map_err(Refused::network)?;
            return Err(Refused::PollResponse(Box::new(reply)));
        }
        Ok(Self { head, wire, begun: Vec::new(), lines: VecDeque::new() })
    }

    /// What comes next, without a deadline.
    pub async fn next(&mut self) -> Next {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Next::Line(line);
            }
            match self.wire.piece().await {
                Ok(Some(piece)) => {
                    let Self { begun, lines, .. } = self;
                    split(begun, &piece, |line| lines.push_back(String::from_utf8_lossy(line).into_owned()));
                }
                Ok(None) if self.begun.is_empty() => return Next::End(None),
                Ok(None) => return Next::End(Some("in the middle of a line".to_owned())),
                Err(error) => return Next::End(Some(error.to_string())),
            }
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        self.wire.reset();
    }
}

/// Cuts bytes into lines; what is left of the last one stays in `begun`. Blank lines are legal signs of life and are left
/// out (the NDJSON specification lets a reader skip them).
fn split(begun: &mut Vec<u8>, bytes: &[u8], mut complete: impl FnMut(&[u8])) {
    let mut rest = bytes;
    while let Some(place) = rest.iter().position(|byte| *byte == b'\n') {
        begun.extend_from_slice(&rest[..place]);
        if !begun.is_empty() {
            complete(begun);
        }
        begun.clear();
        rest = &rest[place + 1..];
    }
    begun.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = "{\"a\":\"\u{2028} …\"}\n\n{}\n{\"cut";
        for step in 1..=text.len() {
            let (mut begun, mut lines) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(step) {
                split(&mut begun, piece, |line| lines.push(String::from_utf8(line.to_vec()).unwrap()));
            }
            assert_eq!(
                (lines, begun),
                (vec!["{\"a\":\"\u{2028} …\"}".to_owned(), "{}".to_owned()], b"{\"cut".to_vec())
            );
        }
    }
}
