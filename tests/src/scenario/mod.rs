//! The fault runs: each breaks a cluster in one way under load, measures what clients notice, and ends with the history
//! checker. Called at full size by the program `chaos` and at a small size by `it/faults`. Each run starts everything it
//! needs and has a file of its own, named after what breaks; `catalog` lists them.

mod any_node;
mod catalog;
mod churn;
mod failover;
mod ghosts;
mod killed_node;
mod lost_subscriptions;
mod measure;
mod mixed_transports;
mod outcome;
mod progress;
mod random_faults;
mod redis_away;
mod redis_forgets;
mod redis_refuses;
mod redis_stalls;
mod rolling_restart;
mod settings;
mod stampede;
mod unread_log;

pub use catalog::{ALL, Scenario, named};
pub use outcome::{Outcome, Promise};
pub use progress::print_line;
pub use settings::{RunSettings, Scale};
