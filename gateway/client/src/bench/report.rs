//! What a load run found: the figures, as a table and as the JSON object of `--json`, whose fields are those of [`Report`].
//! The run makes one at its end. Times end in their unit; what was not measured is null.

use super::{histogram::Histogram, options::Pace, process::Processes, stage::Stage};
use serde::Serialize;
use std::{
    fmt,
    time::{Duration, Instant},
};

/// A stretch of time and what processes spent in it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Spent {
    wall: Duration,
    /// `None` without processes to measure.
    cpu: Option<Duration>,
}

impl Spent {
    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        self.wall += other.wall;
        self.cpu = match (self.cpu, other.cpu) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }

    fn cpu_us_per(&self, count: u64) -> Option<f64> {
        self.cpu.filter(|_| count > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / count as f64)
    }

    fn cores(&self) -> Option<f64> {
        self.cpu.filter(|_| !self.wall.is_zero()).map(|cpu| cpu.as_secs_f64() / self.wall.as_secs_f64())
    }
}

/// The beginning of a stretch.
#[derive(Debug)]
pub(super) struct Span {
    begun: Instant,
    cpu: Duration,
}

impl Span {
    pub(super) fn begin(processes: &Processes) -> Self {
        Self { cpu: processes.cpu(), begun: Instant::now() }
    }

    pub(super) fn end(&self, processes: &Processes) -> Spent {
        let cpu = (!processes.is_empty()).then(|| processes.cpu().saturating_sub(self.cpu));
        Spent { wall: self.begun.elapsed(), cpu }
    }
}

/// What the run measured around the board.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// The gateway, while members joined.
    pub(super) connect: Spent,
    /// The gateway's memory after half of the members and after all of them.
    pub(super) rss_kib: Vec<u64>,
    /// The gateway, while nothing happened.
    pub(super) idle: Spent,
    /// This tool, while it published.
    pub(super) window: Spent,
    /// The gateway, from the first publish to the last delivery.
    pub(super) work: Spent,
    pub(super) delivered_in_window: u64,
    pub(super) acknowledged_in_window: u64,
}

/// Latencies, in milliseconds; null without any.
#[derive(Debug, Serialize)]
struct Latency {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    #[serde(rename = "p99.9")]
    p999: Option<f64>,
    max: Option<f64>,
}

impl Latency {
    fn of(histogram: &Histogram) -> Self {
        let ms = |value: Option<u64>| value.map(|ns| (ns / 1000) as f64 / 1000.0);
        let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|share| ms(histogram.quantile(share)));
        Self { p50, p90, p99, p999, max: ms(histogram.max()) }
    }
}

/// A load run's figures.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    members: usize,
    rooms: usize,
    publishers: usize,
    payload_bytes: usize,
    /// How long was published: less than ordered after Ctrl-C.
    seconds: f64,
    /// From the first connect to the last join.
    connect_seconds: f64,
    /// The gateway's processor time per connect and join.
    connect_cpu_us: Option<f64>,
    /// The gateway's resident memory once all members have joined.
    rss_kib: Option<u64>,
    /// What the second half of the members added to it, per member.
    rss_kib_per_member: Option<f64>,
    /// The gateway's processor time in `--idle`, in percent of one core.
    idle_cpu_percent: Option<f64>,
    /// What `--rate` asks for in all; null in a closed loop.
    offered: Option<u64>,
    published: u64,
    acknowledged: u64,
    refused: u64,
    unanswered: u64,
    /// Acknowledged in the window of publishing, by its length.
    publishes_per_second: f64,
    delivered: u64,
    /// Delivered in the window of publishing, by its length.
    deliveries_per_second: f64,
    /// From the publish — at a fixed rate, from the time for it — to the member.
    latency_ms: Latency,
    /// From there to the acknowledgement.
    acknowledged_ms: Latency,
    /// How late this tool published at a fixed rate: its own share of both.
    late_ms: Latency,
    /// Acknowledged, but a connected member never got it: counted per member.
    lost: u64,
    repeated: u64,
    out_of_order: u64,
    /// `gap` frames that members were sent.
    gaps: u64,
    /// Members whose connection ended.
    disconnected: u64,
    /// Messages of other runs in the same rooms.
    strange: u64,
    /// The gateway's processor time from the first publish to the last delivery, by deliveries and by publishes.
    cpu_us_per_delivery: Option<f64>,
    cpu_us_per_publish: Option<f64>,
    gateway_cores: Option<f64>,
    /// What this tool itself used: near 1 it is the bottleneck.
    bench_cores: Option<f64>,
}

impl Report {
    pub(super) fn new(stage: &Stage, costs: &Costs) -> Self {
        let (order, board) = (&stage.order, stage.board.borrow());
        let tally = &board.tally;
        let seconds = costs.window.wall.as_secs_f64().min(order.seconds);
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let later_half = (order.members - order.members / 2) as f64;
        let slope = match costs.rss_kib[..] {
            [half, all] if order.members > 1 => Some((all as f64 - half as f64) / later_half),
            _ => None,
        };
        let is_measured = !order.pids.is_empty();
        Self {
            members: order.members,
            rooms: order.rooms,
            publishers: order.publishers,
            payload_bytes: order.payload_bytes,
            seconds,
            connect_seconds: costs.connect.wall.as_secs_f64(),
            connect_cpu_us: costs.connect.cpu_us_per(order.members as u64),
            rss_kib: costs.rss_kib.last().copied().filter(|_| is_measured),
            rss_kib_per_member: slope.filter(|_| is_measured),
            idle_cpu_percent: costs.idle.cores().filter(|_| order.idle_seconds > 0.0).map(|cores| cores * 100.0),
            offered: match order.pace {
                Pace::Rate(rate) => Some((rate * seconds).round() as u64),
                Pace::InFlight(_) => None,
            },
            published: tally.published,
            acknowledged: tally.acknowledged,
            refused: tally.refused,
            unanswered: board.unanswered(),
            publishes_per_second: per_second(costs.acknowledged_in_window),
            delivered: tally.delivered,
            deliveries_per_second: per_second(costs.delivered_in_window),
            latency_ms: Latency::of(&tally.latency),
            acknowledged_ms: Latency::of(&tally.acknowledgement),
            late_ms: Latency::of(&tally.lateness),
            lost: board.lost(),
            repeated: tally.repeated,
            out_of_order: tally.out_of_order,
            gaps: tally.gaps,
            disconnected: tally.disconnected,
            strange: tally.strange,
            cpu_us_per_delivery: costs.work.cpu_us_per(tally.delivered),
            cpu_us_per_publish: costs.work.cpu_us_per(tally.acknowledged),
            gateway_cores: costs.work.cores(),
            bench_cores: costs.window.cores(),
        }
    }

    /// What should not have happened, or `None`.
    pub(super) fn findings(&self, stage: &Stage) -> Option<String> {
        let counts = [
            (self.lost, "lost"),
            (self.repeated, "repeated"),
            (self.out_of_order, "out of order"),
            (self.gaps, "gaps told"),
            (self.disconnected, "members disconnected"),
            (self.refused, "publishes refused"),
            (self.unanswered, "publishes unanswered"),
        ];
        let found: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let complaints = stage.board.borrow().tally.complaints().join("; ");
        (!found.is_empty()).then(|| match &*complaints {
            "" => found.join(", "),
            _ => format!("{} ({complaints})", found.join(", ")),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |value: Option<f64>, unit: &str| value.map(|value| format!("{value:.2} {unit}"));
        let latency = |latency: &Latency| {
            let Latency { p50, p90, p99, p999, max } = latency;
            let (Some(p50), Some(p90), Some(p99), Some(p999), Some(max)) = (p50, p90, p99, p999, max) else {
                return None;
            };
            Some(format!("p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3} ms"))
        };
        let members = (self.members > 0).then(|| {
            let per_second = self.members as f64 / self.connect_seconds.max(1e-9);
            format!(
                "{} in {} rooms, joined in {:.2} s ({per_second:.0}/s)",
                self.members, self.rooms, self.connect_seconds
            )
        });
        let published = (self.publishers > 0).then(|| {
            let offered = self.offered.map(|offered| format!(" of {offered}")).unwrap_or_default();
            let Self { published, acknowledged, refused, unanswered, publishers, .. } = self;
            format!(
                "{published}{offered} by {publishers} sessions, {acknowledged} acknowledged ({:.0}/s), {refused} refused, {unanswered} unanswered",
                self.publishes_per_second
            )
        });
        let delivered = (self.members > 0).then(|| format!("{} ({:.0}/s)", self.delivered, self.deliveries_per_second));
        let faults = format!(
            "{} lost, {} repeated, {} out of order, {} gaps, {} disconnected",
            self.lost, self.repeated, self.out_of_order, self.gaps, self.disconnected
        );
        let lines = [
            ("members", members),
            ("gateway CPU per connect and join", figure(self.connect_cpu_us, "µs")),
            ("gateway memory per member", figure(self.rss_kib_per_member, "KiB")),
            ("gateway CPU while idle", figure(self.idle_cpu_percent, "% of a core")),
            ("published", published),
            ("delivered", delivered),
            ("publish to member", latency(&self.latency_ms)),
            ("publish to acknowledgement", latency(&self.acknowledged_ms)),
            ("of that, bench late by", self.offered.and_then(|_| latency(&self.late_ms))),
            ("gateway CPU per delivery", figure(self.cpu_us_per_delivery, "µs")),
            ("gateway CPU per publish", figure(self.cpu_us_per_publish, "µs")),
            ("gateway CPU", figure(self.gateway_cores, "cores")),
            ("bench CPU", figure(self.bench_cores, "cores")),
            ("faults", Some(faults)),
        ];
        for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            writeln!(f, "{name:33} {value}")?;
        }
        Ok(())
    }
}
