//! The one integration binary: whole gateways, a real Redis, a real nginx. `tests/run` builds what it needs and runs
//! it; each module holds the sentences about one part of what the outside sees.

mod backplane;
mod client_tls;
mod cluster;
mod continuity;
mod faults;
mod http_api;
mod load_tool;
mod process;
mod protocol;
mod regressions;
mod sentences;
mod stage;
mod sub;
mod through_nginx;
mod through_nginx_h2;
mod transports;
mod tree;
