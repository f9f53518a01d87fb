//! Every metric, registered once at the start. Code counts on the handles here, so that no label is looked up per
//! message. A room or a user is never a label.

use crate::protocol::{FrameShape, close::CloseReason};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector, process_collector::ProcessCollector,
};
use std::sync::Arc;

/// The metrics of one process. Units are in the names; counters end in `_total`.
pub(crate) struct Metrics {
    registry: Registry,
    /// By [`FrameShape`], like the other arrays here.
    pub(crate) sessions: [IntGauge; FrameShape::COUNT],
    pub(crate) sessions_opened: [IntCounter; FrameShape::COUNT],
    pub(crate) published: [IntCounter; FrameShape::COUNT],
    pub(crate) rooms: IntGauge,
    pub(crate) members: IntGauge,
    sessions_closed: Vec<IntCounter>,
    pub(crate) published_http: IntCounter,
    pub(crate) delivered: [IntCounter; FrameShape::COUNT],
    pub(crate) delivered_poll: IntCounter,
    pub(crate) polls_waiting: IntGauge,
    pub(crate) polls_with_messages: IntCounter,
    pub(crate) polls_empty: IntCounter,
    pub(crate) polls_unmodified: IntCounter,
    pub(crate) delivered_bytes: IntCounter,
    pub(crate) fanout_seconds: Histogram,
    pub(crate) publish_seconds: Histogram,
    pub(crate) backplane_publish_seconds: Histogram,
    pub(crate) outbox_bytes: IntGauge,
    pub(crate) slow_consumers: IntCounter,
    pub(crate) inbox_overflows: IntCounter,
    pub(crate) rate_limited_publish: IntCounter,
    pub(crate) rate_limited_request: IntCounter,
    pub(crate) rate_limited_errors: IntCounter,
    pub(crate) rate_limited_connections: IntCounter,
    pub(crate) refused_origins: IntCounter,
    pub(crate) accept_errors: IntCounter,
    pub(crate) accepts_delayed: IntCounter,
    pub(crate) buffered_messages: IntGauge,
    pub(crate) buffered_bytes: IntGauge,
    pub(crate) buffer_refused: IntCounter,
    pub(crate) backplane_up: IntGauge,
    pub(crate) backplane_reconnects: IntGauge,
    pub(crate) backplane_in_flight: IntGauge,
    pub(crate) backplane_unreadable: IntGauge,
    pub(crate) backplane_lag_seconds: Histogram,
    pub(crate) gaps_filled: IntCounter,
    pub(crate) gaps_told: IntCounter,
    pub(crate) gaps_epoch: IntCounter,
    pub(crate) resumes_exact: IntCounter,
    pub(crate) resumes_gap: IntCounter,
    pub(crate) drain_phase: IntGauge,
}

const FAST: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

struct Registrar(Registry);

impl Registrar {
    fn keep<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        // Names are constants of this file; a test registers them all.
        let collector = collector.expect("a metric's name and labels are valid");
        self.0.register(Box::new(collector.clone())).expect("a metric is registered once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(format!("fanfare_{name}"), help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(format!("fanfare_{name}"), help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(format!("fanfare_{name}"), help))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        let opts = HistogramOpts::new(format!("fanfare_{name}"), help).buckets(FAST.to_vec());
        self.keep(Histogram::with_opts(opts))
    }
}

impl Metrics {
    /// Registers everything; `node` names the process in `build_info`.
    #[allow(clippy::too_many_lines)] // one table, better read whole
    pub(crate) fn new(node: &str) -> Arc<Self> {
        let make = Registrar(Registry::new());
        // Figures of the process from the operating system, read when metrics are asked for.
        let process = Box::new(ProcessCollector::for_self());
        make.0.register(process).expect("a metric is registered once");
        let build = Opts::new("fanfare_build_info", "Always 1; which version and node this is.");
        let build: IntGaugeVec = make.keep(IntGaugeVec::new(build, &["version", "node"]));
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), node]).set(1);
        let sessions = Opts::new("fanfare_sessions", "Sessions that are open.");
        let sessions: IntGaugeVec = make.keep(IntGaugeVec::new(sessions, &["transport", "protocol"]));
        let opened = make.counters("sessions_opened_total", "Sessions opened.", "transport");
        let closed = make.counters("sessions_closed_total", "Sessions ended, by reason.", "reason");
        let published = make.counters("messages_published_total", "Messages handed to the backplane.", "source");
        let delivered = make.counters("messages_delivered_total", "Messages queued for a member.", "transport");
        let limited = make.counters("rate_limited_total", "Refused because of a limit, by what it limits.", "what");
        let refused = make.counters("auth_failures_total", "Clients refused, by reason.", "reason");
        let gaps =
            Opts::new("fanfare_backplane_gaps_total", "Holes in a room's deliveries: filled from history, or told.");
        let gaps: IntCounterVec = make.keep(IntCounterVec::new(gaps, &["cause", "outcome"]));
        let polls = make.counters("polls_total", "Polls answered, by what was in the answer.", "outcome");
        let resumes = make.counters("resumes_total", "Joins with a cursor, by outcome.", "outcome");
        Arc::new(Self {
            sessions: FrameShape::ALL.map(|shape| sessions.with_label_values(&[shape.transport(), "native"])),
            sessions_opened: FrameShape::ALL.map(|shape| opened.with_label_values(&[shape.transport()])),
            published: FrameShape::ALL.map(|shape| published.with_label_values(&[shape.transport()])),
            rooms: make.gauge("rooms", "Rooms that this node's shards follow; a room on two shards counts twice."),
            members: make.gauge("members", "Memberships: a session in three rooms counts three times."),
            sessions_closed: CloseReason::ALL.iter().map(|r| closed.with_label_values(&[r.label()])).collect(),
            published_http: published.with_label_values(&["http"]),
            delivered: FrameShape::ALL.map(|shape| delivered.with_label_values(&[shape.transport()])),
            delivered_poll: delivered.with_label_values(&["poll"]),
            polls_waiting: make.gauge("polls_waiting", "Polls that wait for a message."),
            polls_with_messages: polls.with_label_values(&["messages"]),
            polls_empty: polls.with_label_values(&["empty"]),
            polls_unmodified: polls.with_label_values(&["not_modified"]),
            delivered_bytes: make.counter("delivered_bytes_total", "Bytes written to clients' sockets."),
            fanout_seconds: make.histogram("fanout_seconds", "From taking deliveries off a shard's inbox until each had a first write to its members' sockets; one observation per batch."),
            publish_seconds: make.histogram("publish_seconds", "From a publish to its acknowledgement, where one was asked for."),
            backplane_publish_seconds: make.histogram(
                "backplane_publish_seconds",
                "What of publish_seconds was spent waiting for the backplane.",
            ),
            outbox_bytes: make.gauge("outbox_bytes", "Memory of what waits for clients to read."),
            slow_consumers: make.counter("slow_consumers_total", "Sessions closed because they read too slowly."),
            inbox_overflows: make.counter("inbox_overflows_total", "Deliveries that did not fit a shard's inbox."),
            rate_limited_publish: limited.with_label_values(&["publish"]),
            rate_limited_request: limited.with_label_values(&["request"]),
            rate_limited_errors: limited.with_label_values(&["errors"]),
            rate_limited_connections: limited.with_label_values(&["connections"]),
            refused_origins: refused.with_label_values(&["origin"]),
            accept_errors: make.counter("accept_errors_total", "Failed accepts, mostly for want of file descriptors."),
            accepts_delayed: make.counter(
                "accepts_delayed_total",
                "Connections held up by accepts_per_second, or because no shard had room for them.",
            ),
            buffered_messages: make.gauge("publish_buffer_messages", "Publishes with ?buffer= that wait for their turn or for the backplane."),
            buffered_bytes: make.gauge("publish_buffer_bytes", "Their payloads."),
            buffer_refused: make.counter("publish_buffer_refused_total", "Publishes that did not fit the buffer."),
            backplane_up: make.gauge("backplane_up", "1 while publishes can be expected to succeed."),
            backplane_reconnects: make.gauge("backplane_reconnects_total", "Connections to the backplane made again."),
            backplane_in_flight: make.gauge("backplane_in_flight", "Publishes that wait for the backplane's answer."),
            backplane_unreadable: make.gauge("backplane_unreadable_total", "Envelopes of another version, dropped."),
            backplane_lag_seconds: make.histogram("backplane_lag_seconds", "From a message's time stamp to its arrival on this node; one observation per batch."),
            gaps_filled: gaps.with_label_values(&["hole", "filled"]),
            gaps_told: gaps.with_label_values(&["hole", "told"]),
            gaps_epoch: gaps.with_label_values(&["epoch", "told"]),
            resumes_exact: resumes.with_label_values(&["exact"]),
            resumes_gap: resumes.with_label_values(&["gap"]),
            drain_phase: make.gauge("drain_phase", "0 running, 1 draining, 2 drained."),
            registry: make.0,
        })
    }

    /// Adds a counter that is kept elsewhere.
    pub(crate) fn register(&self, counter: IntCounter) {
        Registrar(self.registry.clone()).keep(Ok(counter));
    }

    /// Counts the end of a session.
    pub(crate) fn session_closed(&self, reason: CloseReason) {
        self.sessions_closed[reason as usize].inc();
    }

    /// The Prometheus text format, version 0.0.4, of everything as it is now. Without a status: the node has had no
    /// backplane yet.
    pub(crate) fn text(&self, status: Option<fanfare_broker::Status>) -> Vec<u8> {
        if let Some(status) = status {
            self.backplane_up.set(i64::from(status.up));
            self.backplane_reconnects.set(status.reconnects.try_into().unwrap_or(i64::MAX));
            self.backplane_in_flight.set(status.in_flight.try_into().unwrap_or(i64::MAX));
            self.backplane_unreadable.set(status.unreadable.try_into().unwrap_or(i64::MAX));
        }
        let mut out = Vec::with_capacity(16 << 10);
        if let Err(why) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%why, "metrics cannot be written");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_once_and_appears_in_the_text() {
        let metrics = Metrics::new("a");
        metrics.session_closed(CloseReason::TooSlow);
        let status = fanfare_broker::Status {
            node: fanfare_broker::NodeId(1),
            up: true,
            reconnects: 0,
            in_flight: 0,
            rooms: 0,
            unreadable: 0,
        };
        let text = String::from_utf8(metrics.text(Some(status))).unwrap();
        for line in [
            "fanfare_backplane_up 1",
            "fanfare_sessions_closed_total{reason=\"too_slow\"} 1",
            "fanfare_sessions{protocol=\"native\",transport=\"ws\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        for name in
            ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"]
        {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
        }
    }
}
