//! The HTTP API of docs/protocol.md against one node: publishing, reading, removing, and every documented refusal.

mod origins;
mod publishing;
mod reading;
mod refusals;
mod removing;
