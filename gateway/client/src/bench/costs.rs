//! What a load run cost: processor time over stretches of the run, and memory. The run measures, the report reads.

use crate::output::Failure;
use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

/// The least that a member can add to a gateway's resident memory, in KiB: its session, its task and its socket's buffers
/// take 1.3 KiB (docs/performance.md, "What one idle connection holds").
const MEMBER_KIB_MIN: f64 = 1.0;
/// A tick of `/proc/PID/stat` (proc_pid_stat(5)): `USER_HZ` is 100 on every architecture that this runs on.
const TICK: Duration = Duration::from_millis(10);
/// Fields 14 and 15 are user and system time; this counts from the state, which follows the name.
const USER_TIME: usize = 11;

/// The processes that are measured, all together: their processor time and memory, and the processors that they may
/// use, from `/proc`. The kernel charges a process for its own work only, so a busy machine hardly changes the figures.
/// On other systems than Linux `--pids` is refused.
#[derive(Debug)]
pub(super) struct Processes(Vec<u32>);

impl Processes {
    pub(super) fn new(pids: Vec<u32>) -> Result<Self, Failure> {
        match pids.iter().find(|pid| cpu(**pid).is_none()) {
            Some(pid) => Err(Failure::config(format_args!("--pids {pid}: no such process"))),
            None => Ok(Self(pids)),
        }
    }

    pub(super) fn own() -> Self {
        Self(vec![std::process::id()])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// User and system time since they started, in steps of 10 ms.
    pub(super) fn cpu(&self) -> Duration {
        self.0.iter().filter_map(|pid| cpu(*pid)).sum()
    }

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
        self.0.iter().filter_map(|pid| status(*pid, name)?.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    /// Begins a stretch of time; calling the result ends it.
    pub(super) fn stretch(&self) -> impl Fn() -> Spent {
        let (cpu, begun) = (self.cpu(), Instant::now());
        move || Spent { wall: begun.elapsed(), cpu: (!self.is_empty()).then(|| self.cpu().saturating_sub(cpu)) }
    }

    /// How many processors both they and this process may use.
    pub(super) fn shared_cores(&self) -> usize {
        let own = allowed_cpus(std::process::id());
        let theirs: BTreeSet<u32> = self.0.iter().flat_map(|pid| allowed_cpus(*pid)).collect();
        if self.0.is_empty() { own.len() } else { own.intersection(&theirs).count() }
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

/// What processes spent in a stretch of time.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Spent {
    pub(super) wall: Duration,
    /// `None` without processes to measure.
    pub(super) cpu: Option<Duration>,
}

impl Spent {
    pub(super) fn add(&mut self, other: &Self) {
        self.wall += other.wall;
        self.cpu = match (self.cpu, other.cpu) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }

    pub(super) fn cpu_us_per(&self, count: u64) -> Option<f64> {
        self.cpu.filter(|_| count > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / count as f64)
    }

    pub(super) fn cores(&self) -> Option<f64> {
        self.cpu.filter(|_| !self.wall.is_zero()).map(|cpu| cpu.as_secs_f64() / self.wall.as_secs_f64())
    }
}

/// What the run measured beside the scoreboard.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// The gateway, while members joined.
    pub(super) connect: Spent,
    /// How many connections the gateway may have had before this run: an upper bound.
    pub(super) connections_before: u64,
    /// The gateway's resident memory before the members, after half of them, and after all of them, in KiB.
    pub(super) rss_kib: Vec<u64>,
    /// The gateway, while nothing happened.
    pub(super) idle: Spent,
    /// This tool, while it published.
    pub(super) window: Spent,
    /// The gateway, from the first publish to the last delivery.
    pub(super) work: Spent,
    pub(super) delivered_in_window: u64,
    pub(super) acknowledged_in_window: u64,
    /// How many processors the gateway and this tool may both use, if both are on this machine.
    pub(super) shared_cores: Option<usize>,
}

impl Costs {
    /// How much the second half of the members added to the gateway's memory, in KiB per member.
    ///
    /// `None` where resident memory cannot tell: a process puts new members into memory that earlier ones have left. So the
    /// first half must be enough to fill the memory of all earlier connections, must itself have added memory, and no
    /// member can have added less than it takes.
    pub(super) fn kib_per_member(&self, members: usize) -> Option<f64> {
        let [before, half, all] = self.rss_kib[..] else { return None };
        let each = |from: u64, to: u64, members: usize| (to as f64 - from as f64) / members.max(1) as f64;
        let (first, second) = (each(before, half, members / 2), each(half, all, members - members / 2));
        let is_new = (members / 2) as u64 >= self.connections_before && first >= second / 2.0;
        (is_new && second >= MEMBER_KIB_MIN).then_some(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_per_member_is_told_only_where_every_member_took_new_memory() {
        let told = |connections_before, rss_kib: [u64; 3]| {
            let costs = Costs { connections_before, rss_kib: rss_kib.to_vec(), ..Costs::default() };
            costs.kib_per_member(1000)
        };
        assert_eq!(told(64, [20_000, 22_500, 24_000]), Some(3.0), "a new process");
        assert_eq!(told(512, [20_000, 22_500, 24_000]), None, "some of the second half may be in old memory");
        assert_eq!(told(64, [24_000, 24_200, 25_700]), None, "the first half found free memory");
        assert_eq!(told(64, [24_000, 24_000, 24_400]), None, "less than a member takes");
        assert_eq!(told(64, [24_000, 23_000, 23_000]), None, "memory was given back meanwhile");
        assert_eq!(Costs::default().kib_per_member(1000), None, "nothing was measured");
    }

    #[cfg(target_os = "linux")]
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
