//! Puts the configuration together from its layers: defaults, file, environment, flags; the later the stronger. Called by
//! `cli`. It reports the faults of all layers at once.

use super::{
    fault::{Faults, Location},
    file,
    options::{self, CONFIG_FILE, Draft, OPTIONS, Spec},
    settings::Config,
};
use crate::policy::limits::ENVELOPE_BYTES;
use fanfare_client_cli::VARIABLES;
use std::{collections::BTreeMap, ffi::OsString};

/// The beginning of all variables of this program.
const PREFIX: &str = "FANFARE_";
/// Variables with the prefix that belong to the tests, and the beginning of further ones.
const OTHERS: &[&str] = &["FANFARE_BLESS", "FANFARE_BIN"];
const OTHERS_PREFIX: &str = "FANFARE_TEST_";

/// Values from the command line, by the option's name. Elements of a list are separated by blanks.
pub(crate) type Flags = BTreeMap<&'static str, String>;

/// The variables that begin with `FANFARE_`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(Vec<(String, OsString)>);

impl Environment {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// A variable's text, if it is set and UTF-8.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.to_str())
    }

    /// Adds a fault for every unknown variable and every option that is not text.
    fn check(&self, faults: &mut Faults) {
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

/// Puts the configuration together.
pub(crate) fn load(flags: &Flags, environment: &Environment) -> Result<Config, Faults> {
    let mut draft = Draft::new(Config::built_in());
    override_with(&[CONFIG_FILE], flags, environment, &mut draft);
    let complete = draft.file.clone().is_none_or(|path| file::read(&path, &mut draft));
    environment.check(&mut draft.faults);
    override_with(OPTIONS, flags, environment, &mut draft);
    if complete {
        check_together(&mut draft);
    }
    draft.faults.none_or(draft.config)
}

/// Takes over options from the environment, and then from flags.
fn override_with(specs: &[Spec], flags: &Flags, environment: &Environment, draft: &mut Draft) {
    for spec in specs {
        let variable = spec.variable();
        if let Some(text) = environment.get(&variable) {
            draft.take(spec, text, Location::Environment(variable));
        }
        if let Some(text) = flags.get(spec.name) {
            draft.take(spec, text, Location::Flag(spec.flag()));
        }
    }
}

/// Adds the faults of values that are valid alone and contradict each other.
fn check_together(draft: &mut Draft) {
    for (names, problem) in contradictions(&draft.config, draft.open) {
        let location = names.iter().find_map(|name| draft.locations.get(name)).cloned();
        let location = location.unwrap_or_else(|| Location::Options(names.join(", ")));
        draft.faults.add(&location, problem);
    }
}

/// What is wrong, and the options whose location to show: the first that is set.
fn contradictions(config: &Config, open: bool) -> Vec<(&'static [&'static str], String)> {
    let Config { listen, limits, .. } = config;
    let mut found: Vec<(&'static [&'static str], String)> = Vec::new();
    if !listen.ip().is_loopback() && !open {
        let problem = format!(
            "{listen} is not loopback, and anonymous access is the default on loopback only: \
             allow it with --open, FANFARE_OPEN=true or open = true"
        );
        found.push((&["listen"], problem));
    }
    if !config.redis.is_empty()
        && let Err(why) = fanfare_broker::redis::RedisConfig::parse(&config.redis_urls())
    {
        found.push((&["redis"], why.to_string()));
    }
    // A message of the largest size has to fit, with what its frame has beside the data: cursor, names, time.
    let frame = limits.message_bytes + ENVELOPE_BYTES;
    if limits.outbox_bytes < frame {
        let problem = format!("outbox_bytes must be at least message_bytes + {ENVELOPE_BYTES} = {frame}");
        found.push((&["outbox_bytes", "message_bytes"], problem));
    }
    if limits.outbox_total_bytes != 0 && limits.outbox_total_bytes < limits.outbox_bytes {
        let problem = format!("outbox_total_bytes must be 0 or at least outbox_bytes = {}", limits.outbox_bytes);
        found.push((&["outbox_total_bytes", "outbox_bytes"], problem));
    }
    found
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
