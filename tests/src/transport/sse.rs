//! An event stream over a connection of its own, block by block with its bytes. Called by `line` and the tests of what
//! only server-sent events can get wrong; it never reconnects.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::http_connection::{Head, HttpConnection};
use super::sse_parser::{SseBlock, SseParser};
use super::{Ended, Refused, Transport};
use crate::wait::within;

/// A running stream.
#[derive(Debug)]
pub struct EventStream {
    /// How the server began.
    pub head: Head,
    wire: HttpConnection,
    parser: SseParser,
    blocks: VecDeque<SseBlock>,
    /// The last event ID: what a browser would come back with.
    pub id: String,
    /// The last reconnection time.
    pub retry_ms: Option<u64>,
    /// What its last event said about the end, if `line` has read it.
    pub(super) close: Option<Ended>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A block.
    Block(SseBlock),
    /// The body has ended; with what was wrong about that, if anything was.
    End(Option<String>),
}

impl EventStream {
    /// A stream that has begun.
    ///
    /// # Errors
    /// When the answer is no event stream: a browser gives up for good then.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let mut wire = HttpConnection::connect(address).await.map_err(Refused::network)?;
        let headers = [&[("Accept", Transport::Sse.accepts())], headers].concat();
        wire.get(path, &headers).await.map_err(Refused::network)?;
        let head = wire.head().await.map_err(Refused::network)?;
        if head.status != 200 || head.header("content-type").split(';').next() != Some(Transport::Sse.accepts()) {
            let reply = wire.reply(head).await.map_err(Refused::network)?;
            return Err(Refused::PollResponse(Box::new(reply)));
        }
        let (parser, blocks) = (SseParser::default(), VecDeque::new());
        Ok(Self { head, wire, parser, blocks, id: String::new(), retry_ms: None, close: None })
    }

    /// What comes next, without a deadline.
    pub async fn next(&mut self) -> Next {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                block.id.clone_into(&mut self.id);
                self.retry_ms = block.retry_ms.or(self.retry_ms);
                return Next::Block(block);
            }
            match self.wire.piece().await {
                Ok(Some(piece)) => {
                    let Self { parser, blocks, .. } = self;
                    parser.feed(&piece, |block| blocks.push_back(block));
                }
                Ok(None) => return Next::End(None),
                Err(error) => return Next::End(Some(error.to_string())),
            }
        }
    }

    /// The next block.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn block(&mut self) -> SseBlock {
        match within("the next block", self.next()).await {
            Next::Block(block) => block,
            Next::End(why) => panic!("the stream has ended: {why:?}"),
        }
    }

    /// All blocks up to the end, and what was wrong about it.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn to_end(&mut self) -> (Vec<SseBlock>, Option<String>) {
        let mut blocks = Vec::new();
        loop {
            match within("the end of the stream", self.next()).await {
                Next::Block(block) => blocks.push(block),
                Next::End(why) => return (blocks, why),
            }
        }
    }

    /// Ends the connection with a RST.
    pub fn reset(self) {
        self.wire.reset();
    }
}
