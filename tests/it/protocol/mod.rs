//! docs/protocol.md over a WebSocket, against one node: every command, every reply, every refusal.

mod bytes;
mod joining;
mod limits;
mod presence;
mod publishing;
mod refusals;
mod resuming;
mod welcome;
