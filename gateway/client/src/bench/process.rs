//! Processor time and memory of the measured processes, and the processors that they may use, from `/proc`. The kernel
//! charges a process for its own work only, so a busy machine hardly changes the figures. On other systems than Linux
//! `--pids` is refused.

use crate::output::Failure;
use std::{collections::BTreeSet, fs, time::Duration};

/// A tick of `/proc/PID/stat` (proc_pid_stat(5)): `USER_HZ` is 100 on every architecture that this runs on.
const TICK: Duration = Duration::from_millis(10);
/// Fields 14 and 15 are user and system time; this counts from the state, which follows the name.
const USER_TIME: usize = 11;

/// The processes that are measured, all together.
#[derive(Debug)]
pub(super) struct Processes {
    pids: Vec<u32>,
}

impl Processes {
    /// # Errors
    /// A process that does not run.
    pub(super) fn new(pids: Vec<u32>) -> Result<Self, Failure> {
        match pids.iter().find(|pid| cpu(**pid).is_none()) {
            Some(pid) => Err(Failure::config(format_args!("--pids {pid}: no such process"))),
            None => Ok(Self { pids }),
        }
    }

    /// This process.
    pub(super) fn own() -> Self {
        Self { pids: vec![std::process::id()] }
    }

    /// Whether there is nothing to measure.
    pub(super) fn is_empty(&self) -> bool {
        self.pids.is_empty()
    }

    /// User and system time since they started, in steps of 10 ms.
    pub(super) fn cpu(&self) -> Duration {
        self.pids.iter().filter_map(|pid| cpu(*pid)).sum()
    }

    /// Resident memory, in KiB.
    pub(super) fn rss_kib(&self) -> u64 {
        self.sum("VmRSS:")
    }

    /// How many open files they have had at most, rounded up: the kernel's tables of open files grow by doubling and never
    /// shrink. A connection is an open file.
    pub(super) fn files_max(&self) -> u64 {
        self.sum("FDSize:")
    }

    /// The sum of a number in `/proc/PID/status`.
    fn sum(&self, name: &str) -> u64 {
        self.pids.iter().filter_map(|pid| status(*pid, name)?.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    /// How many processors both they and this process may use.
    pub(super) fn shared_cores(&self) -> usize {
        let own = allowed_cpus(std::process::id());
        let theirs: BTreeSet<u32> = self.pids.iter().flat_map(|pid| allowed_cpus(*pid)).collect();
        if self.pids.is_empty() { own.len() } else { own.intersection(&theirs).count() }
    }
}

fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, spaces and parentheses included.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: Option<u32> = fields.split(' ').skip(USER_TIME).take(2).map(|field| field.parse::<u32>().ok()).sum();
    Some(TICK * ticks?)
}

fn allowed_cpus(pid: u32) -> BTreeSet<u32> {
    status(pid, "Cpus_allowed_list:").map(|list| cpu_list(&list)).unwrap_or_default()
}

/// Reads a list such as `0-2,5`.
fn cpu_list(list: &str) -> BTreeSet<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// The value of a line of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_processors_and_spends_time() {
        let own = Processes::new(vec![std::process::id()]).unwrap();
        assert!(!own.is_empty() && own.rss_kib() > 1000 && own.files_max() > 2 && own.shared_cores() > 0);
        let before = own.cpu();
        let mut number = 1_u64;
        while own.cpu() < before + 2 * TICK {
            number = std::hint::black_box(number.wrapping_mul(31));
        }
        assert_eq!(Processes::new(vec![u32::MAX]).unwrap_err().exit_code, 78);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpu_list("0-2,5"), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(cpu_list("x"), BTreeSet::new());
    }
}
