//! The environment as a layer of the configuration: options are read from it, and unknown variables that begin with
//! `FANFARE_` are faults. `cli` takes it from the process once; it is never changed.

use super::{
    fault::{Faults, Location},
    options::{self, Spec},
};
use fanfare_client_cli::VARIABLES;
use std::ffi::OsString;

/// The beginning of all variables of this program.
const PREFIX: &str = "FANFARE_";

/// Variables with the prefix that belong to the tests.
const OTHERS: &[&str] = &["FANFARE_BLESS", "FANFARE_BIN"];

/// Also a beginning of variables that belong to the tests.
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

    /// An option's text and its location.
    pub(super) fn option(&self, spec: &Spec) -> Option<(&str, Location)> {
        let name = spec.variable();
        self.get(&name).map(|text| (text, Location::Environment(name.clone())))
    }

    /// Adds a fault for every unknown variable and every option that is not text.
    pub(super) fn check(&self, faults: &mut Faults) {
        for (name, value) in &self.0 {
            let known = options::all().any(|spec| spec.variable() == *name);
            if known && value.to_str().is_none() {
                faults.add(&Location::Environment(name.clone()), "is not UTF-8");
            } else if !known && !is_of_others(name) {
                let problem = "unknown variable; `fanfare serve --help` lists all variables";
                faults.add(&Location::Environment(name.clone()), problem);
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

/// Whether a variable with the prefix belongs to something else. Kubernetes and Docker links put the addresses of a service
/// named `fanfare` or `fanfare-…` into every container beside it (`FANFARE_PORT_8080_TCP_ADDR`,
/// `FANFARE_REDIS_SERVICE_HOST`). If those were faults, a node could not start because of its service's name.
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
    fn variables_of_a_service_named_fanfare_do_not_stop_the_start() {
        let names = ["FANFARE_SERVICE_HOST", "FANFARE_PORT", "FANFARE_PORT_8080_TCP_ADDR", "FANFARE_SERVICE_PORT_HTTP"];
        assert!(names.into_iter().all(is_of_others));
        assert!(
            options::all().all(|spec| !is_of_others(&spec.variable())),
            "an option's variable looks like one of these"
        );
    }
}
