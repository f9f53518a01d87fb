//! The line on standard error that shows every second how a load run goes. It reads the scoreboard and changes nothing.
//! Where standard error is not a terminal, it is shown only with `--progress`.

use super::run_context::RunContext;
use std::{
    io::{IsTerminal as _, Write as _},
    rc::Rc,
    time::Duration,
};

/// Shows the line for as long as the run lives, if it is shown at all.
pub(super) async fn show(context: Rc<RunContext>) {
    let is_terminal = std::io::stderr().is_terminal();
    if !is_terminal && !context.options.progress {
        return;
    }
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    let (mut published, mut delivered) = (0, 0);
    for second in 1_u64.. {
        every.tick().await;
        let line = {
            let counters = &context.scoreboard.borrow().counters;
            let line = format!(
                "{second} s: {} members, {} publishes/s, {} deliveries/s, p99 {:.3} ms, {} waiting, {} repeated, {} out of order",
                counters.joined - counters.disconnected,
                counters.published - published,
                counters.delivered - delivered,
                counters.latency.ms(0.99).unwrap_or(0.0),
                counters.expected.saturating_sub(counters.delivered),
                counters.repeated,
                counters.out_of_order,
            );
            (published, delivered) = (counters.published, counters.delivered);
            line
        };
        // On a terminal each line replaces the one before, and the report can replace the last.
        let _ = match is_terminal {
            true => write!(std::io::stderr(), "\r\x1b[K{line}\r"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }
}
