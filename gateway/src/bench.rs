//! Access to the gateway's inside for `benches/`, and for nothing else: it is no interface and may change with every
//! commit. It arranges and calls; what is measured is the gateway's own code, unchanged.

pub use crate::shard::Crowd;

use crate::{
    app,
    config::{self, Config, Environment},
    node::{drain::Drain, inbox::Inbox, metrics::Metrics},
    protocol::{FrameShape, native, put_frame},
    session::{Frames, HeldBytes, Outbox, OutboxLimits, SLICES_MAX},
};
use bytes::BytesMut;
use fanfare_broker::{
    Cursor, Epoch, MemoryBroker, MessageId, NodeId, Offset, Publication, Room, SessionId, Subscriber,
};
use std::{
    hint::black_box,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

/// Runs a node in this process until it is drained. An error says why the node cannot start.
pub fn serve(flags: &[(&'static str, &str)]) -> Result<(), String> {
    let flags = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let config = config::load(&flags, &Environment::default()).map_err(|why| why.to_string())?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|why| why.to_string())?;
    runtime.block_on(app::run(config)).map_err(|why| why.to_string())
}

/// Decodes a client's frame; whether it is a command.
#[must_use]
pub fn decode(text: &str) -> bool {
    black_box(native::decode(text)).is_ok()
}

/// A publication as the broker delivers it to a shard: message number `offset` of a room with history.
#[must_use]
pub fn publication(data: &str, offset: u64) -> Publication {
    const AUTHOR: SessionId = SessionId([7; 12]);
    let epoch = Epoch::from_bytes(*b"Xk2p9QaB").unwrap_or(Epoch::FOREIGN);
    Publication {
        cursor: Some(Cursor::new(epoch, Offset(offset))),
        id: MessageId { node: NodeId(1), number: offset },
        author: Some(AUTHOR),
        ts_ms: 1_763_760_000_123,
        payload: native::payload(data, None, native::Sender::Session(AUTHOR, None)).into(),
    }
}

/// Appends a publication as members receive it: the message's text in a WebSocket frame.
pub fn encode(room: &Room, publication: &Publication, out: &mut BytesMut) {
    let text = native::MessageText::new(room, publication);
    put_frame(out, FrameShape::WebSocket, &text.parts(publication));
}

/// Appends a WebSocket frame around a text.
pub fn frame(text: &[u8], out: &mut BytesMut) {
    put_frame(out, FrameShape::WebSocket, &[text]);
}

/// One client's outbox.
#[derive(Debug)]
pub struct BenchOutbox {
    outbox: Outbox,
    limits: OutboxLimits,
    frame: Frames,
}

impl BenchOutbox {
    /// An empty outbox that takes this many bytes, and the frame that [`BenchOutbox::push`] queues.
    #[must_use]
    pub fn new(bytes: usize, frame: &[u8]) -> Self {
        let limits = OutboxLimits { bytes, frames: 1024, age_ms: 5000 };
        let frame = HeldBytes::default().shared(BytesMut::from(frame), 1);
        Self { outbox: Outbox::default(), limits, frame }
    }

    /// Queues the frame at this time; `false` on overflow.
    pub fn push(&mut self, now_ms: u32) -> bool {
        self.outbox.push(std::array::from_ref(&self.frame), true, now_ms, &self.limits).is_ok()
    }

    /// Gathers the slices of one write, and notes that the socket took `written` bytes of them.
    pub fn write(&mut self, written: usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        black_box(self.outbox.slices(&mut slices));
        self.outbox.advance(written, 0);
    }
}

/// A shard with `rooms` rooms with history, each with `members` members of its own; and the runtime with which their socket
/// is registered.
pub fn fan_out(rooms: usize, members: u32) -> io::Result<(Crowd, Runtime)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let socket = Rc::new(runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        TcpStream::connect(listener.local_addr()?).await
    })?);
    let config = Config::built_in();
    let metrics = Metrics::new(&config.node);
    let inbox = Arc::new(Inbox::new(Arc::clone(&metrics)));
    let broker = Arc::new(MemoryBroker::new(vec![Arc::clone(&inbox) as Arc<dyn Subscriber>]));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let node = app::node(&config, broker, address, Arc::new(Drain::new(metrics)), vec![Arc::clone(&inbox)]);
    let mut crowd = Crowd::new(Arc::new(node), inbox);
    let head = publication("null", 0).cursor;
    for room in (0..rooms).filter_map(|n| Room::parse(&format!("bench:{n}")).ok()) {
        crowd.add(room, head, members, &socket);
    }
    crowd.discard();
    Ok((crowd, runtime))
}
