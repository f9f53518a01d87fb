//! `fanfare bench` as a user runs it: what it counts against what was asked for, what it says meanwhile and at the end,
//! and how it says no. The run's own arithmetic is tested beside its code.

use fanfare_tests::cluster::binary;
use fanfare_tests::process::{Launch, Output};
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Cluster, http, ports};
use serde_json::{Value, json};

use crate::fixtures::{NO_RATE, one_node, one_node_with};

fn bench(args: &[&str]) -> Launch {
    Launch::new("bench", binary()).arg("bench").args(args)
}

fn url(cluster: &Cluster, node: usize) -> String {
    format!("ws://{}", cluster.address(node))
}

fn report(output: &Output) -> Value {
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "--json prints one line: {output:?}");
    serde_json::from_str(lines[0]).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

fn count(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is no count: {report}"))
}

fn figure(report: &Value, field: &str) -> f64 {
    report[field].as_f64().unwrap_or_else(|| panic!("{field} is no number: {report}"))
}

/// Nothing was lost, and what was acknowledged came to each of the members of its room, once.
fn adds_up(report: &Value, members_per_room: u64) {
    for fault in ["unanswered", "lost", "repeated", "out_of_order", "gaps", "disconnected", "strange"] {
        assert_eq!(count(report, fault), 0, "{fault}: {report}");
    }
    assert!(count(report, "acknowledged") > 0, "{report}");
    assert_eq!(count(report, "acknowledged") + count(report, "refused"), count(report, "published"), "{report}");
    assert_eq!(count(report, "delivered"), count(report, "acknowledged") * members_per_room, "{report}");
}

fn is_ordered(latency: &Value) {
    let values = ["p50", "p90", "p99", "p99.9", "max"].map(|field| figure(latency, field));
    assert!(values[0] > 0.0 && values.is_sorted(), "{latency}");
}

#[tokio::test]
async fn the_report_of_a_load_on_two_nodes_adds_up() {
    let cluster = Cluster::over_redis(2).config(NO_RATE).start().await;
    let urls = format!("{},{}", url(&cluster, 0), url(&cluster, 1));
    let pids = format!("{},{}", cluster.nodes[0].pid(), cluster.nodes[1].pid());
    let from_b = url(&cluster, 1);
    let run = bench(&["--json", "--progress", "--transport", "ws", "--url", &urls, "--publish-url", &from_b])
        .args(["--members", "24", "--rooms", "4", "--room-prefix", "load:", "--publishers", "2", "--rate", "200"])
        .args(["--payload", "300", "--seconds", "2", "--idle", "0.2", "--pids", &pids]);
    let output = run.run().await;
    assert_eq!(output.code, Some(0), "{output:?}");

    let report = report(&output);
    for (field, asked) in [("members", 24), ("rooms", 4), ("publishers", 2), ("payload_bytes", 300), ("offered", 400)] {
        assert_eq!(count(&report, field), asked, "{field}: {report}");
    }
    assert_eq!(count(&report, "refused"), 0, "{report}");
    assert!(count(&report, "published") <= 400, "{report}");
    adds_up(&report, 24 / 4);
    is_ordered(&report["latency_ms"]);
    is_ordered(&report["acknowledged_ms"]);
    for above_zero in ["seconds", "connect_seconds", "publishes_per_second", "deliveries_per_second"] {
        assert!(figure(&report, above_zero) > 0.0, "{above_zero}: {report}");
    }
    for cost in ["gateway_cores", "bench_cores", "cpu_us_per_delivery", "cpu_us_per_publish"] {
        assert!(figure(&report, cost) > 0.0, "{cost}: {report}");
    }
    // Few members come and little happens: their share may be less than the 10 ms in which the kernel counts.
    for cost in ["connect_cpu_us", "idle_cpu_percent"] {
        assert!(report[cost].is_number(), "{cost}: {report}");
    }
    let asked = [&report["target"], &report["transport"], &report["rate"], &report["in_flight"]];
    assert_eq!(asked, [&json!([url(&cluster, 0), from_b]), &json!("ws"), &json!(200.0), &Value::Null], "{report}");
    assert!(count(&report, "shared_cores") > 0, "all processes are on this machine: {report}");
    assert!(count(&report, "rss_kib") > 2 * 1024, "two processes have more than 2 MiB: {report}");

    assert!(output.stderr.starts_with("1 s: "), "{}", output.stderr);
    // The first seconds may pass before all members have come.
    let complete = output.stderr.lines().find(|line| line.contains("24 members, ")).unwrap_or_default();
    for part in [" publishes/s, ", " deliveries/s, ", "p99 "] {
        assert!(complete.contains(part), "{part} is not in a progress line of 24 members: {}", output.stderr);
    }
}

#[tokio::test]
async fn people_get_a_table_and_no_line_but_the_report() {
    let cluster = one_node_with(NO_RATE).await;
    let pid = cluster.nodes[0].pid().to_string();
    let run = bench(&["--url", &url(&cluster, 0), "--members", "10", "--in-flight", "2", "--seconds", "0.5"]);
    let output = run.args(["--pids", &pid]).run().await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{output:?}");
    let table: Vec<(&str, &str)> =
        output.stdout.lines().filter_map(|line| Some((line.get(..33)?.trim_end(), line.get(34..)?))).collect();
    let line = |name: &str| {
        let found = table.iter().find(|(found, _)| *found == name);
        found.unwrap_or_else(|| panic!("no line {name}:\n{}", output.stdout)).1
    };
    assert_eq!(line("target"), format!("{} over WebSocket", url(&cluster, 0)));
    assert_eq!(line("load"), "10 members in 1 room, 2 messages of 128 bytes in flight from 1 session, for 0.5 s");
    assert!(line("machine").starts_with("gateway and bench share "), "{}", output.stdout);
    assert!(line("members joined").starts_with("10 in "), "{}", output.stdout);
    assert!(line("published").contains("0 refused, 0 unanswered"), "{}", output.stdout);
    assert_eq!(line("faults"), "0 lost, 0 repeated, 0 out of order, 0 gaps, 0 disconnected");
    for (name, part) in [
        ("delivered", "/s)"),
        ("publish to member", "p99.9"),
        ("publish to acknowledgement", "p50"),
        ("gateway memory per member", "KiB"),
        ("gateway CPU per delivery", "µs: all CPU since the first publish / "),
        ("gateway CPU per publish", "µs: the same CPU / "),
        ("bench CPU", "% of a core"),
    ] {
        assert!(line(name).contains(part), "{name} without {part}:\n{}", output.stdout);
    }
    let last = output.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("gateway CPU ") && last.contains(" % of a core at this rate: "), "{last}");
}

#[tokio::test]
async fn what_was_not_measured_is_null() {
    let cluster = one_node_with(NO_RATE).await;
    let run = bench(&["--json", "--url", &url(&cluster, 0), "--publish-only", "--rooms", "8", "--publishers", "2"]);
    let output = run.args(["--in-flight", "64", "--seconds", "0.5"]).run().await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{output:?}");
    let report = report(&output);
    adds_up(&report, 0);
    is_ordered(&report["acknowledged_ms"]);
    for field in
        ["offered", "rate", "rss_kib", "rss_kib_per_member", "connect_cpu_us", "gateway_cores", "cpu_us_per_delivery"]
    {
        assert!(report[field].is_null(), "{field}: {report}");
    }
    assert!(report["latency_ms"]["p50"].is_null(), "{report}");
}

#[tokio::test]
async fn refused_publishes_are_counted_apart_and_fail_the_run() {
    // Bursts of 2. Of 20 publishes at most 18 are refused: after 20 the publisher would be closed.
    let cluster = one_node_with("[limits]\npublishes_per_second = 1\n").await;
    let run = bench(&["--json", "--url", &url(&cluster, 0), "--members", "4", "--rate", "20", "--seconds", "1"]);
    let output = run.run().await;
    assert_eq!(output.code, Some(1), "{output:?}");
    let report = report(&output);
    assert!(count(&report, "refused") > 0, "{report}");
    adds_up(&report, 4);
    assert!(output.stderr.contains("refused"), "{}", output.stderr);
}

#[tokio::test]
async fn a_publisher_that_is_closed_for_its_errors_names_the_limit_to_raise() {
    let cluster = one_node_with("[limits]\npublishes_per_second = 5\n").await;
    let run = bench(&["--url", &url(&cluster, 0), "--members", "1", "--rate", "200", "--seconds", "60"]);
    let output = run.run().await;
    assert_eq!(output.code, Some(1), "{output:?}");
    for part in ["closed with 4429 too many errors", "rate_limited: too many publishes", "publishes_per_second"] {
        assert!(output.stderr.contains(part), "{part} is not in {}", output.stderr);
    }
}

/// Members of a second run move into memory that those of the first have left, and would seem to need less.
#[tokio::test]
async fn memory_per_member_is_told_of_a_new_process_only() {
    let cluster = one_node().await;
    let pid = cluster.nodes[0].pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let files = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("the kernel tells it");
    let members = (2 * files.trim().parse::<u64>().expect("a number")).to_string();
    let pid = pid.to_string();
    let run =
        ["--url", &url(&cluster, 0), "--members", &members, "--publishers", "0", "--seconds", "0", "--pids", &pid];
    let first = report(&bench(&run).arg("--json").run().await);
    assert!(figure(&first, "rss_kib_per_member") >= 1.0, "{first}");
    let second = bench(&run).run().await;
    assert!(second.stdout.contains("gateway memory per member         cannot be told: "), "{second:?}");
}

#[tokio::test]
async fn a_gateway_that_goes_fails_the_run() {
    let mut cluster = one_node_with(NO_RATE).await;
    let run = bench(&["--url", &url(&cluster, 0), "--members", "4", "--rate", "20", "--seconds", "60"]);
    let mut running = run.start(cluster.scratch().path());
    let address = cluster.address(0);
    eventually("the members have joined", async || {
        http::get(address, "/v1/rooms/bench:0").send().await.json()["sessions"] == 4
    })
    .await;
    cluster.nodes[0].kill();
    let status = running.exit(patience()).await;
    assert_eq!(status.code(), Some(1), "{}", running.log());
    assert!(running.log().contains("fanfare bench: "), "{}", running.log());
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_said_in_one_line() {
    let nobody = format!("127.0.0.1:{}", ports::free_port());
    let output = bench(&["--url", &format!("ws://{nobody}"), "--members", "1"]).run().await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.lines().count() == 1 && output.stderr.contains(&nobody), "{}", output.stderr);
}

#[tokio::test]
async fn a_wrong_order_is_refused_by_its_flag() {
    for (args, named) in [
        (&["--transport", "pigeon"][..], "--transport"),
        (&["--members", "many"], "--members"),
        (&["--rooms", "0"], "--rooms"),
        (&["--rate", "1", "--in-flight", "1"], "--in-flight"),
        (&["--rate", "0"], "--rate"),
        (&["--payload", "1"], "--payload"),
        (&["--seconds=-1"], "--seconds"),
        (&["--publish-only", "--members", "2"], "--members"),
        (&["--room-prefix", "a b"], "--room-prefix"),
        (&["--from", "here"], "--from"),
        (&["--pids", "4294967295"], "--pids"),
        (&["--speed", "9"], "--speed"),
    ] {
        let output = bench(args).run().await;
        assert_eq!((output.code, &*output.stdout), (Some(78), ""), "{args:?}: {output:?}");
        assert!(output.stderr.contains(named), "{args:?} without {named}: {}", output.stderr);
    }
    let help = bench(&["--help"]).run().await.stdout;
    for flag in ["url", "members", "rooms", "rate", "payload", "transport", "progress", "pids", "json", "seconds"] {
        assert!(help.contains(&format!("--{flag}")), "--{flag} is not in the help:\n{help}");
    }
}
