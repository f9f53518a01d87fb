//! Puts the configuration together from its layers: defaults, file, environment, flags; the later the stronger. Called by
//! `cli`. It reports the faults of all layers at once.

use super::{
    environment::Environment,
    fault::{Faults, Location},
    file,
    options::{CONFIG_FILE, Draft, OPTIONS, Spec},
    settings::Config,
};
use crate::policy::limits::ENVELOPE_BYTES;
use std::{collections::BTreeMap, path::Path};

/// Values from the command line, by the option's name. Elements of a list are separated by blanks.
pub(crate) type Flags = BTreeMap<&'static str, String>;

/// Puts the configuration together.
///
/// # Errors
/// Every fault of every layer.
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

/// Whether `serve --config FILE` would start in this environment.
///
/// # Errors
/// Every fault, as in [`load`].
pub(crate) fn check(file: &Path, environment: &Environment) -> Result<(), Faults> {
    let flags = Flags::from([(CONFIG_FILE.name, file.to_string_lossy().into_owned())]);
    load(&flags, environment).map(drop)
}

/// Takes over options from the environment, and then from flags.
fn override_with(specs: &[Spec], flags: &Flags, environment: &Environment, draft: &mut Draft) {
    for spec in specs {
        if let Some((text, location)) = environment.option(spec) {
            draft.take(spec, text, location);
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
        && let Err(why) = fanfare_broker::redis::Config::parse(&config.redis_urls())
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
