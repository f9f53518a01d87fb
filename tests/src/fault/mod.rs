//! A TCP proxy that breaks connections on purpose: between clients and a gateway, or between a gateway and Redis. Called
//! by the fault tests and the fault runs. `kind` is what it can do to connections, `proxy` accepts them, and `pump`
//! copies their bytes.

mod kind;
mod proxy;
mod pump;

pub use kind::{Direction, Fault};
pub use proxy::Proxy;

#[cfg(test)]
mod tests;
