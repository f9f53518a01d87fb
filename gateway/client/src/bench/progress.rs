//! The line on standard error that says every second how a load run goes. The run starts it; it reads the board and changes
//! nothing. Nobody is shown it where standard error is not a terminal, unless that is wished.

use super::stage::Stage;
use std::{
    io::{IsTerminal as _, Write as _},
    rc::Rc,
    time::Duration,
};

/// Shows the line for as long as the run lives, if it is to be shown at all.
pub(super) fn start(stage: &Rc<Stage>) {
    let is_terminal = std::io::stderr().is_terminal();
    if is_terminal || stage.order.progress {
        tokio::task::spawn_local(show(Rc::clone(stage), is_terminal));
    }
}

async fn show(stage: Rc<Stage>, is_terminal: bool) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    let (mut published, mut delivered) = (0, 0);
    for second in 1_u64.. {
        every.tick().await;
        let line = {
            let board = stage.board.borrow();
            let tally = &board.tally;
            let line = format!(
                "{second} s: {} members, {} publishes/s, {} deliveries/s, p99 {:.3} ms, {} waiting, {} repeated, {} out of order",
                tally.joined - tally.disconnected,
                tally.published - published,
                tally.delivered - delivered,
                tally.latency.quantile(0.99).unwrap_or(0) as f64 / 1e6,
                tally.expected.saturating_sub(tally.delivered),
                tally.repeated,
                tally.out_of_order,
            );
            (published, delivered) = (tally.published, tally.delivered);
            line
        };
        // A terminal's line is written over; the report goes to standard output, which may be the same terminal.
        let _ = match is_terminal {
            true => write!(std::io::stderr(), "\r\x1b[K{line}\r"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }
}
