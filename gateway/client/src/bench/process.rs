//! Processor time and memory of the measured processes, from `/proc`. `/proc` counts what the kernel charged to the process,
//! so that a busy machine hardly moves the figure. Linux only; elsewhere naming a process is refused.

use crate::{EXIT_CONFIG, Failure};
use std::{fs, time::Duration};

/// A tick of `/proc/PID/stat` (proc_pid_stat(5)): `USER_HZ` is 100 on every architecture that this runs on.
const TICK: Duration = Duration::from_millis(10);
/// Fields 14 and 15, user and system time, counted from the state after the name.
const USER_TIME: usize = 11;

/// The processes whose cost is measured, all together.
#[derive(Debug)]
pub(super) struct Processes {
    pids: Vec<u32>,
}

impl Processes {
    /// # Errors
    /// One that does not run.
    pub(super) fn new(pids: Vec<u32>) -> Result<Self, Failure> {
        match pids.iter().find(|pid| cpu(**pid).is_none()) {
            Some(pid) => Err(Failure::new(EXIT_CONFIG, format_args!("--pids {pid}: no such process"))),
            None => Ok(Self { pids }),
        }
    }

    /// This process.
    pub(super) fn own() -> Self {
        Self { pids: vec![std::process::id()] }
    }

    /// Whether there is anything to measure.
    pub(super) fn is_empty(&self) -> bool {
        self.pids.is_empty()
    }

    /// User and system time since they started, whose grain is 10 ms.
    pub(super) fn cpu(&self) -> Duration {
        self.pids.iter().filter_map(|pid| cpu(*pid)).sum()
    }

    /// Resident memory, in KiB.
    pub(super) fn rss_kib(&self) -> u64 {
        self.pids.iter().filter_map(|pid| rss_kib(*pid)).sum()
    }
}

fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, spaces and parentheses included.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: Option<u32> = fields.split(' ').skip(USER_TIME).take(2).map(|field| field.parse::<u32>().ok()).sum();
    Some(TICK * ticks?)
}

fn rss_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_spends_time() {
        let own = Processes::new(vec![std::process::id()]).unwrap();
        assert!(!own.is_empty() && own.rss_kib() > 1000);
        let before = own.cpu();
        let mut number = 1_u64;
        while own.cpu() < before + 2 * TICK {
            number = std::hint::black_box(number.wrapping_mul(31));
        }
        assert_eq!(Processes::new(vec![u32::MAX]).unwrap_err().code, EXIT_CONFIG);
    }
}
