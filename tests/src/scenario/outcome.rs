//! What a run found: figures beside their targets, and the checker's verdict; one line. Called by every run and by who
//! prints them; it never measures.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use crate::history::Verdict;

/// What must hold for what members saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing is lost: the fault takes nothing away that was acknowledged.
    Clean,
    /// What is lost was told: the fault takes acknowledged messages away.
    Honest,
}

/// One figure.
#[derive(Clone, Debug)]
struct Figure {
    text: String,
    is_met: bool,
}

/// See the module's head.
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

    /// A time and the longest that it may be.
    pub(super) fn time(mut self, what: &str, value: Duration, target: Duration) -> Self {
        let text = format!("{what} {value:.1?} (target <= {target:?})");
        self.figures.push(Figure { text, is_met: value <= target });
        self
    }

    /// A count, a ratio or a percentage, and the most that it may be.
    pub(super) fn at_most(mut self, what: &str, value: f64, target: f64) -> Self {
        let text = format!("{what} {} (target <= {target})", short(value));
        self.figures.push(Figure { text, is_met: value <= target });
        self
    }

    /// A count, a ratio or a percentage, and the least that it must be.
    pub(super) fn at_least(mut self, what: &str, value: f64, target: f64) -> Self {
        let text = format!("{what} {} (target >= {target})", short(value));
        self.figures.push(Figure { text, is_met: value >= target });
        self
    }

    /// Something worth knowing that has no target.
    pub(super) fn note(mut self, text: impl Into<String>) -> Self {
        self.figures.push(Figure { text: text.into(), is_met: true });
        self
    }

    /// Whether the promise was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        match self.promise {
            Promise::Clean => self.verdict.has_no_loss(),
            Promise::Honest => self.verdict.reports_every_loss(),
        }
    }

    /// Whether the promise was kept and every target was met.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.is_kept() && self.figures.iter().all(|figure| figure.is_met)
    }

    /// The one line that a run prints.
    #[must_use]
    pub fn line(&self, name: &str, seed: u64) -> String {
        let word = match (self.is_kept(), self.is_ok()) {
            (false, _) => "BROKEN",
            (true, false) => "SHORT",
            (true, true) => "ok",
        };
        let mut line = format!("{} seed={seed} {word}:", name.to_uppercase());
        for (place, figure) in self.figures.iter().enumerate() {
            let separator = if place == 0 { " " } else { " · " };
            let missed = if figure.is_met { "" } else { " MISSED" };
            let _ = write!(line, "{separator}{}{missed}", figure.text);
        }
        let _ = write!(line, "; {}", self.verdict);
        line
    }
}

/// A count without a fraction, anything else with two digits of it.
fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

/// A line for whoever watches a run: written past the capture of the test harness.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
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
        let told = Outcome::new(Promise::Honest, lost.clone()).time("back in", seconds(1), seconds(2));
        assert!(told.is_ok() && told.line("r4", 7).starts_with("R4 seed=7 ok: back in 1.0s (target <= 2s); history:"));
        let late = told.at_most("dropped", 3.0, 0.0);
        assert!(late.is_kept() && !late.is_ok(), "{late:?}");
        assert!(late.line("r4", 7).contains("SHORT: back in 1.0s (target <= 2s) · dropped 3 (target <= 0) MISSED;"));
        let broken = Outcome::new(Promise::Clean, lost);
        assert!(!broken.is_ok() && broken.line("r2", 1).starts_with("R2 seed=1 BROKEN:"));
    }
}
