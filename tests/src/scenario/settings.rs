//! How large and how long a run is. Called by every run and by the callers of a run; values only.

use std::time::Duration;

/// The size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The size that docs/scoreboard.md states.
    Full,
    /// A few seconds, for the test command: the promises are checked, and the figures mean little.
    Small,
}

/// The settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings {
    /// The seed of all its random numbers.
    pub seed: u64,
    /// Its size.
    pub scale: Scale,
    /// Its length, for runs that can have any.
    pub length: Duration,
}

impl RunSettings {
    /// The value for the size of this run.
    pub(super) fn pick<T>(&self, full: T, small: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Small => small,
        }
    }
}
