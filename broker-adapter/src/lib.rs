//! Moves publications between the nodes of the gateway, keeps the recent history of rooms, and knows who is present.
//!
//! The crate does not know sockets or JSON: a payload is bytes, a session is an id, and events are delivered to the
//! numbered [`Subscriber`]s of this process, which are the gateway's shards.
//!
//! # The contract, in prose
//!
//! **Order.** A room has one order, in which every subscriber of every node sees the room's messages. Two messages that
//! are published one after the other through the same node keep their order.
//!
//! **Acknowledgement.** [`Broker::publish`] reports success to its [`Reply`] once the backplane has given the message
//! its [`Cursor`] (in a room without history: once it has taken the message). An error means that the message was not
//! acknowledged. If the connection broke in between, the message may still have been published, so a publisher retries
//! with the same idempotency key.
//!
//! **Joining.** [`Broker::subscribe`] returns the room's head. Every message after that head reaches the subscriber.
//! Messages up to the head may be delivered too; a subscriber recognizes and skips them by their offsets.
//!
//! **Lost deliveries.** A live delivery can be lost, while the connection to the backplane is away or because a queue
//! is full. In a room with history the subscriber learns of it: the offset of the next message jumps, or it gets a
//! [`RoomEvent::Head`] after a reconnect, and within a minute in a quiet room. It then reads what is missing from
//! [`Broker::history`]. Messages that history no longer has are reported as a [`Gap`]. Rooms without history deliver at
//! most once.
//!
//! **Epochs.** Within an epoch offsets grow by one per message. After a restart, a failover, a flush or an eviction the
//! backplane may have lost the last offsets that it gave out. Then the room begins a new epoch, so no offset is used
//! twice under one epoch.
//!
//! **Presence.** A user is announced once per room: one [`PresenceEvent`] with the first session that enters, and one
//! with the last session that leaves. Events have a version, and a listing has the version of the last event that it
//! contains, so a client can merge the two exactly.
//!
//! `contract` (behind the feature of that name) is the test suite of these promises, which every broker passes.

mod broker;
#[cfg(any(test, feature = "contract"))]
#[allow(clippy::unwrap_used, missing_docs)]
pub mod contract;
mod cursor;
mod envelope;
mod memory;
mod position;
pub mod redis;
mod room;
mod session_id;

pub use broker::{
    Broker, BrokerError, BrokerFuture, Delivery, Gap, HistoryQuery, IdempotencyKey, Member, MessageId, NodeId,
    NodeTarget, Page, Presence, PresenceDetail, PresenceEvent, PresenceKind, PresenceUpdate, Publication, Publish,
    PublishResult, Published, Purpose, Reply, Retention, RoomEvent, RoomList, RoomQuery, Status, Subscriber,
    SubscriberId, Ticket, User, Who,
};
pub use cursor::{Cursor, CursorInvalid, Epoch, Offset};
pub use envelope::IsPayload;
pub use memory::MemoryBroker;
pub use position::{Position, Verdict};
pub use redis::RedisBroker;
pub use room::{Room, RoomInvalid};
pub use session_id::{SessionId, SessionIdInvalid};
