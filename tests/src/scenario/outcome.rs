//! The outcome of a run: figures with their targets and the verdict of the history checker, printed as one line. Called
//! by every run, and by the callers of a run to print it; it measures nothing.

use std::fmt::Write as _;
use std::time::Duration;

use crate::history::Verdict;

/// What a run demands of what members saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// No acknowledged message is lost.
    NoLoss,
    /// Gaps cover every lost message; for faults that take acknowledged messages away from Redis.
    EveryLossReported,
}

/// One measured figure.
#[derive(Clone, Debug)]
struct Figure {
    text: String,
    is_met: bool,
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    promise: Promise,
    verdict: Verdict,
    figures: Vec<Figure>,
}

impl Outcome {
    pub(super) fn new(promise: Promise, verdict: Verdict) -> Self {
        Self { promise, verdict, figures: Vec::new() }
    }

    /// Adds a time that must not exceed its target.
    pub(super) fn time(self, what: &str, value: Duration, target: Duration) -> Self {
        self.figure(format!("{what} {value:.1?} (target <= {target:?})"), value <= target)
    }

    /// Adds a count, a ratio or a percentage that must not exceed its target.
    pub(super) fn at_most(self, what: &str, value: f64, target: f64) -> Self {
        self.figure(format!("{what} {} (target <= {target})", short(value)), value <= target)
    }

    /// Adds a count, a ratio or a percentage that must reach its target.
    pub(super) fn at_least(self, what: &str, value: f64, target: f64) -> Self {
        self.figure(format!("{what} {} (target >= {target})", short(value)), value >= target)
    }

    /// Adds something worth knowing that has no target.
    pub(super) fn note(self, text: impl Into<String>) -> Self {
        self.figure(text.into(), true)
    }

    fn figure(mut self, text: String, is_met: bool) -> Self {
        self.figures.push(Figure { text, is_met });
        self
    }

    /// Whether the promise was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        match self.promise {
            Promise::NoLoss => self.verdict.has_no_loss(),
            Promise::EveryLossReported => self.verdict.reports_every_loss(),
        }
    }

    /// Whether the promise was kept and every target was met.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.is_kept() && self.figures.iter().all(|figure| figure.is_met)
    }

    /// The line that a run prints at its end.
    #[must_use]
    pub fn line(&self, name: &str, seed: u64) -> String {
        let word = match (self.is_kept(), self.is_ok()) {
            (false, _) => "BROKEN",
            (true, false) => "MISSED",
            (true, true) => "ok",
        };
        let mut line = format!("{} seed={seed} {word}:", name.to_uppercase());
        for (index, figure) in self.figures.iter().enumerate() {
            let separator = if index == 0 { " " } else { " · " };
            let missed = if figure.is_met { "" } else { " MISSED" };
            let _ = write!(line, "{separator}{}{missed}", figure.text);
        }
        let _ = write!(line, "; {}", self.verdict);
        line
    }
}

/// A whole number as such, any other number with two decimals.
fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Promise};
    use crate::history::Verdict;
    use std::time::Duration;

    #[test]
    fn a_missed_target_and_a_broken_promise_are_different_things() {
        let seconds = Duration::from_secs;
        let lost = Verdict { lost: 1, ..Verdict::default() };
        let kept = Outcome::new(Promise::EveryLossReported, lost.clone()).time("back in", seconds(1), seconds(2));
        assert!(kept.is_ok() && kept.line("r4", 7).starts_with("R4 seed=7 ok: back in 1.0s (target <= 2s); history:"));
        let late = kept.at_most("dropped", 3.0, 0.0);
        assert!(late.is_kept() && !late.is_ok(), "{late:?}");
        assert!(late.line("r4", 7).contains("MISSED: back in 1.0s (target <= 2s) · dropped 3 (target <= 0) MISSED;"));
        let broken = Outcome::new(Promise::NoLoss, lost);
        assert!(!broken.is_ok() && broken.line("r2", 1).starts_with("R2 seed=1 BROKEN:"));
    }
}
