//! What the operator decides: the configuration, read from one file, the environment and flags. `cli` calls it.
//!
//! | file | |
//! |---|---|
//! | `settings` | everything that can be set, and the defaults |
//! | `load` | reads the environment, puts the layers together and finds contradictions |
//! | `options`, `sections` | the options, and the sections of the file, whose keys only it has (except `origins`) |
//! | `file`, `field` | reading the file |
//! | `value` | reading values from text |
//! | `fault` | what is wrong, and where |
//! | `reference` | docs/configuration.md |

mod fault;
mod field;
mod file;
mod load;
mod options;
mod reference;
mod sections;
mod settings;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use load::{Environment, Flags, load};
pub(crate) use options::{Spec, ValueKind, all as options};
pub(crate) use reference::markdown as reference;
pub(crate) use settings::Config;
pub(crate) use value::LogFormat;
