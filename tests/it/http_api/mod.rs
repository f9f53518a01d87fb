//! PROTOCOL's HTTP section against one node: publishing, reading, removing, and every documented refusal.

mod origins;
mod publishing;
mod reading;
mod refusals;
mod removing;
