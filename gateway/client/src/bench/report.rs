//! What a load run found: the figures, as a table and as the JSON object of `--json`, whose fields are those of [`Report`].
//! Names of fields end in their unit; what was not measured is null.

use super::{costs::Costs, counters::Latencies, options::LoadModel, run_context::RunContext};
use serde::Serialize;
use std::fmt;

/// Latencies, in milliseconds; null without any.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    #[serde(rename = "p99.9")]
    p999: Option<f64>,
    max: Option<f64>,
}

impl Percentiles {
    fn of(latencies: &Latencies) -> Self {
        let [p50, p90, p99, p999, max] = [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| latencies.ms(share));
        Self { p50, p90, p99, p999, max }
    }

    fn line(&self) -> Option<String> {
        let [p50, p90, p99, p999, max] = [self.p50?, self.p90?, self.p99?, self.p999?, self.max?];
        Some(format!("p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3} ms"))
    }
}

/// The figures of a load run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The gateway's nodes, as given.
    target: Vec<String>,
    transport: String,
    members: usize,
    rooms: usize,
    publishers: usize,
    payload_bytes: usize,
    /// `--rate`, in messages a second; null in a closed loop.
    rate: Option<f64>,
    /// `--in-flight`, in messages; null at a fixed rate.
    in_flight: Option<usize>,
    /// How long was published: less than `--seconds` after Ctrl-C.
    seconds: f64,
    /// How many processors the gateway and this tool may both use; null if the gateway is elsewhere.
    shared_cores: Option<usize>,
    /// From the first connect to the last join.
    connect_seconds: f64,
    /// The gateway's processor time per connect and join.
    connect_cpu_us: Option<f64>,
    /// The gateway's resident memory once all members have joined.
    rss_kib: Option<u64>,
    /// What the second half of the members added to it, per member; null where that cannot be told.
    rss_kib_per_member: Option<f64>,
    /// How many members are enough to tell it: twice the connections that the gateway may have had before.
    #[serde(skip)]
    members_to_tell: u64,
    /// The gateway's processor time in `--idle`, in percent of one core.
    idle_cpu_percent: Option<f64>,
    /// How many messages `--rate` asks for in all; null in a closed loop.
    offered: Option<u64>,
    published: u64,
    acknowledged: u64,
    refused: u64,
    unanswered: u64,
    /// Acknowledged within `seconds`, divided by them.
    publishes_per_second: f64,
    delivered: u64,
    /// Delivered within `seconds`, divided by them.
    deliveries_per_second: f64,
    /// From the publish (at a fixed rate, from the time that it was scheduled for) to the member.
    latency_ms: Percentiles,
    /// From the same moment to the acknowledgement.
    acknowledged_ms: Percentiles,
    /// How late this tool published at a fixed rate: its own share of both.
    late_ms: Percentiles,
    /// Deliveries of acknowledged messages that a connected member never got.
    lost: u64,
    repeated: u64,
    out_of_order: u64,
    /// `gap` frames that members received.
    gaps: u64,
    /// Members whose connection ended.
    disconnected: u64,
    /// Messages of other runs in the same rooms.
    strange: u64,
    /// The gateway's processor time from the first publish to the last delivery, divided by all deliveries.
    cpu_us_per_delivery: Option<f64>,
    /// The same processor time, divided by all acknowledged publishes: each includes its deliveries.
    cpu_us_per_publish: Option<f64>,
    gateway_cores: Option<f64>,
    /// What this tool itself used: near 1 it is the bottleneck.
    bench_cores: Option<f64>,
}

impl Report {
    pub(super) fn new(context: &RunContext, costs: &Costs) -> Self {
        let (options, scoreboard) = (&context.options, context.scoreboard.borrow());
        let counters = &scoreboard.counters;
        let seconds = costs.window.wall.as_secs_f64().min(options.seconds);
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let is_measured = !options.pids.is_empty();
        let in_flight = if let LoadModel::InFlight(messages) = options.pace() { Some(messages) } else { None };
        Self {
            target: options.nodes().map(|node| node.url).collect(),
            transport: options.transport.clone(),
            members: options.members,
            rooms: options.rooms,
            publishers: options.publishers,
            payload_bytes: options.payload_bytes,
            rate: options.rate,
            in_flight,
            seconds,
            shared_cores: costs.shared_cores,
            connect_seconds: costs.connect.wall.as_secs_f64(),
            connect_cpu_us: costs.connect.cpu_us_per(options.members as u64),
            rss_kib: costs.rss_kib.last().copied().filter(|_| is_measured),
            rss_kib_per_member: costs.kib_per_member(options.members).filter(|_| is_measured),
            members_to_tell: 2 * costs.connections_before,
            idle_cpu_percent: costs.idle.cores().filter(|_| options.idle_seconds > 0.0).map(|cores| cores * 100.0),
            offered: options.rate.map(|rate| (rate * seconds).round() as u64),
            published: counters.published,
            acknowledged: counters.acknowledged,
            refused: counters.refused,
            unanswered: scoreboard.unanswered(),
            publishes_per_second: per_second(costs.acknowledged_in_window),
            delivered: counters.delivered,
            deliveries_per_second: per_second(costs.delivered_in_window),
            latency_ms: Percentiles::of(&counters.latency),
            acknowledged_ms: Percentiles::of(&counters.acknowledgement),
            late_ms: Percentiles::of(&counters.lateness),
            lost: scoreboard.lost(),
            repeated: counters.repeated,
            out_of_order: counters.out_of_order,
            gaps: counters.gaps,
            disconnected: counters.disconnected,
            strange: counters.strange,
            cpu_us_per_delivery: costs.work.cpu_us_per(counters.delivered),
            cpu_us_per_publish: costs.work.cpu_us_per(counters.acknowledged),
            gateway_cores: costs.work.cores(),
            bench_cores: costs.window.cores(),
        }
    }

    /// What must not happen in a good run, or `None`.
    pub(super) fn faults(&self, context: &RunContext) -> Option<String> {
        let counts = [
            (self.lost, "lost"),
            (self.repeated, "repeated"),
            (self.out_of_order, "out of order"),
            (self.gaps, "gaps"),
            (self.disconnected, "members disconnected"),
            (self.refused, "publishes refused"),
            (self.unanswered, "publishes unanswered"),
        ];
        let found: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let explanation = context.scoreboard.borrow().counters.explanation();
        (!found.is_empty()).then(|| match &*explanation {
            "" => found.join(", "),
            _ => format!("{} ({explanation})", found.join(", ")),
        })
    }

    /// What was asked for: the head of the table.
    fn load(&self) -> String {
        let pace = match (self.publishers, self.rate, self.in_flight) {
            (0, _, _) => "what another run publishes".to_owned(),
            (sessions, Some(rate), _) => {
                format!("{rate} messages/s of {} bytes from {}", self.payload_bytes, counted(sessions, "session"))
            }
            (sessions, None, in_flight) => format!(
                "{} of {} bytes in flight from {}",
                counted(in_flight.unwrap_or_default(), "message"),
                self.payload_bytes,
                counted(sessions, "session")
            ),
        };
        format!(
            "{} in {}, {pace}, for {:.1} s",
            counted(self.members, "member"),
            counted(self.rooms, "room"),
            self.seconds
        )
    }

    /// What the gateway's processor time is enough for: the last line of the table.
    fn size(&self) -> String {
        match self.gateway_cores {
            None => "not measured: --pids PID,PID names its processes, if they run on this machine".to_owned(),
            Some(cores) => format!(
                "{:.1} % of a core at this rate: {:.0} publishes/s, {:.0} deliveries/s",
                cores * 100.0,
                self.publishes_per_second,
                self.deliveries_per_second
            ),
        }
    }

    fn memory(&self) -> Option<String> {
        let total = self.rss_kib.filter(|_| self.members > 0)?;
        Some(match self.rss_kib_per_member {
            Some(kib) => format!("{kib:.2} KiB, by what the second half of them added; {total} KiB in all"),
            None => format!(
                "cannot be told: they may be in memory that earlier connections have left; \
                 take a new process and at least {} members ({total} KiB in all)",
                self.members_to_tell
            ),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |value: Option<f64>, unit: &str| value.map(|value| format!("{value:.2} {unit}"));
        let cores = self.shared_cores.filter(|cores| *cores > 0);
        let machine = cores.map(|cores| format!("gateway and bench share {}", counted(cores, "core")));
        let joined = (self.members > 0).then(|| {
            let per_second = self.members as f64 / self.connect_seconds.max(1e-9);
            format!("{} in {:.2} s ({per_second:.0}/s)", self.members, self.connect_seconds)
        });
        let published = (self.publishers > 0).then(|| {
            let offered = self.offered.map(|offered| format!(" of {offered}")).unwrap_or_default();
            let Self { published, acknowledged, refused, unanswered, .. } = self;
            format!(
                "{published}{offered}, {acknowledged} acknowledged ({:.0}/s), {refused} refused, {unanswered} unanswered",
                self.publishes_per_second
            )
        });
        let delivered = (self.members > 0).then(|| format!("{} ({:.0}/s)", self.delivered, self.deliveries_per_second));
        // Both divide the same processor time, so each line says by what.
        let per_delivery = self
            .cpu_us_per_delivery
            .map(|us| format!("{us:.2} µs: all CPU since the first publish / {} deliveries", self.delivered));
        let per_publish = self
            .cpu_us_per_publish
            .map(|us| format!("{us:.2} µs: the same CPU / {} publishes, deliveries included", self.acknowledged));
        let faults = format!(
            "{} lost, {} repeated, {} out of order, {} gaps, {} disconnected",
            self.lost, self.repeated, self.out_of_order, self.gaps, self.disconnected
        );
        let lines = [
            ("target", Some(format!("{} over WebSocket", self.target.join(", ")))),
            ("load", Some(self.load())),
            ("machine", machine),
            ("members joined", joined),
            ("gateway CPU per connect and join", figure(self.connect_cpu_us, "µs")),
            ("gateway memory per member", self.memory()),
            ("gateway CPU while idle", figure(self.idle_cpu_percent, "% of a core")),
            ("published", published),
            ("delivered", delivered),
            ("publish to member", self.latency_ms.line()),
            ("publish to acknowledgement", self.acknowledged_ms.line()),
            ("of that, bench late by", self.offered.and_then(|_| self.late_ms.line())),
            ("gateway CPU per delivery", per_delivery),
            ("gateway CPU per publish", per_publish),
            ("bench CPU", self.bench_cores.map(|cores| format!("{:.1} % of a core", cores * 100.0))),
            ("faults", Some(faults)),
            ("gateway CPU", Some(self.size())),
        ];
        for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            writeln!(f, "{name:33} {value}")?;
        }
        Ok(())
    }
}

/// `1 room`, `2 rooms`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
