//! Moving publications between gateway nodes, keeping a room's recent past, and knowing who is present.
//!
//! The crate has never heard of sessions, sockets or JSON: a payload is bytes, a member is a name, and whoever
//! consumes deliveries is a numbered [`Subscriber`] of this process (the gateway's shards).
//!
//! # The contract, in prose
//!
//! **Order.** A room has one order. Every subscriber of every node sees a room's messages in it, and two messages
//! published one after the other through the same node keep their order.
//!
//! **Acknowledgement.** [`Broker::publish`] answers through its [`Reply`] once the backplane has assigned the
//! message its [`Cursor`] (in a room without history: has taken it). An error means that the message was not
//! acknowledged; it may still have been published when the connection broke in between, which is why a publisher
//! retries with the same idempotency key.
//!
//! **Joining.** When [`Broker::subscribe`] has answered with the room's head, every message after that head
//! reaches the subscriber. What came up to the head may have been delivered too; a subscriber skips it by offset.
//!
//! **What a reconnect can lose, and how that is told.** A live delivery can be lost: while the connection to the
//! backplane is away, or because a queue was full. In a room with history a subscriber notices by offset (the next
//! message jumps), or is told by [`RoomEvent::Head`], after a reconnect and within a minute in a quiet room, where the room
//! stands; it then reads the hole from [`Broker::history`]. What history no longer has is a [`Gap`], never silence. Rooms without history are
//! at-most-once.
//!
//! **Epochs.** Offsets grow by one per message within an epoch. When the backplane cannot vouch that its memory is
//! the one that gave out the last offsets (restart, failover, flush, eviction) the room starts a new epoch; an
//! offset is never used twice under one epoch.
//!
//! **Presence.** One [`PresenceEvent`] per user and room: with the first session in, with the last one out. Events
//! carry a version, and a listing tells the version it contains, so that the two can be merged exactly.
//!
//! `contract` (behind the feature of that name) is the suite that holds every broker to this.

mod broker;
#[cfg(any(test, feature = "contract"))]
#[allow(clippy::unwrap_used, missing_docs)]
pub mod contract;
mod cursor;
pub mod envelope;
mod memory;
mod position;
pub mod redis;
mod room;
mod session_id;

pub use broker::{
    Broker, BrokerError, BrokerFuture, Delivery, Gap, HistoryQuery, IdempotencyKey, Member, MessageId, NodeId,
    NodeTarget, Page, Presence, PresenceDetail, PresenceEvent, PresenceKind, PresenceUpdate, Publication, Publish,
    PublishResult, Published, Reply, Retention, RoomEvent, RoomList, RoomQuery, Status, Subscriber, SubscriberId,
    Ticket, User, Who,
};
pub use cursor::{Cursor, CursorInvalid, Epoch, Offset};
pub use memory::MemoryBroker;
pub use position::{Position, Verdict};
pub use redis::RedisBroker;
pub use room::{Room, RoomInvalid};
pub use session_id::{SessionId, SessionIdInvalid};
