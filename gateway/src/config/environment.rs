//! The process's environment as a layer of the configuration. `cli` takes it from the process once; `config` reads the
//! options from it and refuses variables that look like ours and are not. It never changes the environment.

use super::{
    fault::{Faults, Place},
    options::{self, Spec},
};
use fanfare_client_cli::VARIABLES;
use std::ffi::OsString;

/// What all of our variables begin with.
const PREFIX: &str = "FANFARE_";

/// Variables with our prefix that belong to the tests, not to the server.
const OTHERS: &[&str] = &["FANFARE_BLESS", "FANFARE_BIN"];

/// The same, by their beginning.
const OTHERS_PREFIX: &str = "FANFARE_TEST_";

/// The variables that begin with `FANFARE_`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(Vec<(String, OsString)>);

impl Environment {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// A variable's text, if it is set and UTF-8.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.to_str())
    }

    /// An option's text and its place.
    pub(super) fn option(&self, spec: &Spec) -> Option<(&str, Place)> {
        let name = spec.variable();
        self.get(&name).map(|text| (text, Place::Environment(name.clone())))
    }

    /// Notes every variable that is none of ours, and every one that is not text.
    pub(super) fn check(&self, faults: &mut Faults) {
        for (name, value) in &self.0 {
            let known = options::all().any(|spec| spec.variable() == *name);
            if known && value.to_str().is_none() {
                faults.add(name, "is not UTF-8");
            } else if !known && !is_of_others(name) {
                faults.add(name, "unknown variable; `fanfare serve --help` lists those there are");
            }
        }
    }
}

impl FromIterator<(String, OsString)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, OsString)>>(variables: I) -> Self {
        let mut ours: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        ours.sort();
        Self(ours)
    }
}

/// Whether a variable with our prefix is somebody else's. Kubernetes and Docker links put the addresses of a service
/// named `fanfare` or `fanfare-…` into every pod beside it (`FANFARE_PORT_8080_TCP_ADDR`, `FANFARE_REDIS_SERVICE_HOST`):
/// refusing those would keep a pod from starting because of its service's name.
fn is_of_others(name: &str) -> bool {
    let linked = name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains("_PORT_") && name.contains(protocol));
    OTHERS.contains(&name) || VARIABLES.contains(&name) || name.starts_with(OTHERS_PREFIX) || linked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_has_our_name_does_not_stop_the_start() {
        let names = ["FANFARE_SERVICE_HOST", "FANFARE_PORT", "FANFARE_PORT_8080_TCP_ADDR", "FANFARE_SERVICE_PORT_HTTP"];
        assert!(names.into_iter().all(is_of_others));
        assert!(options::all().all(|spec| !is_of_others(&spec.variable())), "an option's name has such a shape");
    }
}
