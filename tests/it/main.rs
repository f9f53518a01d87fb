//! The whole-process tests: real gateways, a real Redis, a real nginx, all in one test binary. `tests/run` builds what they
//! need and runs them. Each module tests one part of what clients and operators see.

// Its macro is for the modules below it.
#[macro_use]
mod fixtures;

mod backplane;
mod client_tls;
mod cluster;
mod continuity;
mod databases;
mod deploy;
mod documents;
mod faults;
mod http_api;
mod load_tool;
mod log;
mod operator;
mod planned_stop;
mod process;
mod protocol;
mod refusals;
mod regressions;
mod sentences;
mod signals;
mod sub;
mod through_nginx;
mod through_nginx_h2;
mod through_nginx_publish;
mod transports;
mod tree;
