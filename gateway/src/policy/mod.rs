//! What is allowed: rights, web origins, client addresses, limits, and the classes of rooms. Values and decisions only; they
//! are applied where a request, a command or a connection comes in.

pub(crate) mod class;
pub(crate) mod limits;
pub(crate) mod origin;
pub(crate) mod peer;
pub(crate) mod rights;
