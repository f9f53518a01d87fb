//! An event stream over a connection of its own, block by block with the block's bytes. Called by `connection` and the
//! tests of server-sent events. It never reconnects.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::http_connection::HttpConnection;
use super::kind::Transport;
use super::sse_parser::{SseBlock, SseParser};
use crate::http::{Refused, Reply};
use crate::wait::within;

/// A running event stream.
#[derive(Debug)]
pub struct EventStream {
    /// The head of the reply.
    pub head: Reply,
    connection: HttpConnection,
    parser: SseParser,
    blocks: VecDeque<SseBlock>,
    /// The last event ID, which a browser would send when it reconnects.
    pub id: String,
    /// The last reconnection time.
    pub retry_ms: Option<u64>,
}

impl EventStream {
    /// Opens a stream and reads the head of the reply.
    ///
    /// # Errors
    /// If the reply is not an event stream. A browser gives up for good in that case.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let (connection, head) = HttpConnection::stream(address, Transport::Sse, path, headers).await?;
        let (parser, blocks) = (SseParser::default(), VecDeque::new());
        Ok(Self { head, connection, parser, blocks, id: String::new(), retry_ms: None })
    }

    /// Waits for the next block without a deadline; `None` once the body has ended.
    ///
    /// # Errors
    /// If the connection breaks; the text says how.
    pub async fn next(&mut self) -> Result<Option<SseBlock>, String> {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                block.id.clone_into(&mut self.id);
                self.retry_ms = block.retry_ms.or(self.retry_ms);
                return Ok(Some(block));
            }
            match self.connection.piece().await {
                Ok(Some(piece)) => self.parser.feed(&piece, |block| self.blocks.push_back(block)),
                Ok(None) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The next block.
    ///
    /// # Panics
    /// If none comes in time.
    pub async fn block(&mut self) -> SseBlock {
        match within("the next block", self.next()).await {
            Ok(Some(block)) => block,
            end => panic!("the stream has ended: {end:?}"),
        }
    }

    /// All blocks up to the end, and the error that ended the stream, if it was one.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn to_end(&mut self) -> (Vec<SseBlock>, Option<String>) {
        let mut blocks = Vec::new();
        loop {
            match within("the end of the stream", self.next()).await {
                Ok(Some(block)) => blocks.push(block),
                Ok(None) => return (blocks, None),
                Err(why) => return (blocks, Some(why)),
            }
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        self.connection.reset();
    }
}
