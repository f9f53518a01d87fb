//! The program `fanfare`: its start, the settings that it refuses, its metrics and health, its drain, its other commands.

use std::net::TcpListener;
use std::time::Duration;

use fanfare_tests::cluster::{binary, serve};
use fanfare_tests::process::{Launch, Output};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience, patient};
use fanfare_tests::{Client, Cluster, http, prometheus};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::fixtures::{UnfinishedPublish, node_and_client, one_node};

fn fanfare(args: &[&str]) -> Launch {
    Launch::new("fanfare", binary()).args(args)
}

/// The output of a failed start without the log's INFO lines.
fn printed_faults(output: &Output) -> Vec<String> {
    output.stderr.lines().filter(|line| !line.contains(" INFO ")).map(str::to_owned).collect()
}

const FAULTY: &str = r#"
listen = "nowhere"
colour = "red"
[limits]
message_bytes = "many"
[[rooms]]
match = "a"
history = "perhaps"
[weather]
"#;

#[tokio::test]
async fn a_bad_configuration_is_refused_with_all_its_faults() {
    let scratch = Scratch::new();
    let file = scratch.file("bad.toml", FAULTY);
    let launch = fanfare(&["serve", "--drain", "soon", "--config"]).arg(&file);
    let output = launch.env("FANFARE_NONSENSE", "1").env("FANFARE_SHARDS", "none").run().await;
    assert_eq!(output.code, Some(78), "{output:?}");
    for fault in
        ["listen", "colour", "message_bytes", "history", "weather", "drain", "FANFARE_NONSENSE", "FANFARE_SHARDS"]
    {
        assert!(output.stderr.contains(fault), "{fault} is not named:\n{}", output.stderr);
    }
}

#[tokio::test]
async fn check_reports_ok_or_every_fault() {
    let scratch = Scratch::new();
    let good = scratch.file("good.toml", "[[rooms]]\nmatch = \"chat:*\"\nhistory = { messages = 10, ttl = \"1h\" }\n");
    let output = fanfare(&["check"]).arg(&good).run().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let bad = scratch.file("bad.toml", FAULTY);
    let output = fanfare(&["check"]).arg(&bad).run().await;
    assert_eq!(output.code, Some(78), "{output:?}");
    for fault in ["listen", "colour", "message_bytes", "history", "weather"] {
        assert!(output.stderr.contains(fault), "{fault} is not named:\n{}", output.stderr);
    }
}

#[tokio::test]
async fn check_prints_at_most_twenty_faults_and_their_number() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let output = fanfare(&["check", readme]).run().await;
    assert_eq!(output.code, Some(78), "{output:?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 21, "{}", output.stderr);
    assert!(lines[0].contains("README.md:") && lines[0].contains("not TOML"), "{}", lines[0]);
    assert!(lines[20].starts_with("and ") && lines[20].ends_with(" faults in all"), "{}", lines[20]);
}

#[tokio::test]
async fn an_unknown_key_leads_to_the_reference_which_the_program_prints() {
    let scratch = Scratch::new();
    let file = scratch.file("bad.toml", "colour = \"red\"\n");
    let output = fanfare(&["check"]).arg(&file).run().await;
    assert!(output.stderr.contains("`fanfare check --reference` lists all keys"), "{}", output.stderr);
    let reference = fanfare(&["check", "--reference"]).run().await;
    let page = include_str!("../../docs/configuration.md");
    assert_eq!((reference.code, reference.stdout.trim_end()), (Some(0), page.trim_end()));
}

#[tokio::test]
async fn wrong_flags_exit_with_78_and_help_with_0() {
    for args in [&["--no-such-flag"][..], &["serve", "--shards"], &["no-such-command"], &["pub"]] {
        assert_eq!(fanfare(args).run().await.code, Some(78), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["serve", "--help"], &["sub", "--help"], &["pub", "--help"]] {
        let output = fanfare(args).run().await;
        assert!(output.code == Some(0) && !output.stdout.is_empty(), "{args:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_public_address_needs_the_flag_open() {
    let output = fanfare(&["serve", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"]).run().await;
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.contains("open"), "{}", output.stderr);
}

#[tokio::test]
async fn an_unreachable_redis_is_reported_in_one_line() {
    let scratch = Scratch::new();
    let port = fanfare_tests::ports::free_port();
    let output = serve(&scratch, "a").arg("--redis").arg(format!("redis://127.0.0.1:{port}")).run().await;
    assert_eq!(output.code, Some(69), "{output:?}");
    let faults = printed_faults(&output);
    assert!(faults.len() == 1 && faults[0].contains(&port.to_string()), "{faults:?}");
}

/// A member of a cluster without slots refuses every key. It was "not available".
#[tokio::test]
async fn a_redis_that_refuses_keys_is_reported_with_its_own_words() {
    let scratch = Scratch::new();
    let redis = Redis::start_as("redis", scratch.path(), &["--cluster-enabled", "yes"]).await;
    let output = serve(&scratch, "a").arg("--redis").arg(redis.url()).run().await;
    assert_eq!(output.code, Some(69), "{output:?}");
    let last = printed_faults(&output).pop().unwrap_or_default();
    assert!(last.contains("CLUSTERDOWN Hash slot not served"), "{output:?}");
}

/// Redis is tried four times a second.
#[tokio::test]
async fn waiting_for_redis_is_logged_once_in_five_seconds() {
    let scratch = Scratch::new();
    let port = fanfare_tests::ports::free_port();
    let launch = serve(&scratch, "a").args(["--redis-wait", "2", "--redis"]);
    let output = launch.arg(format!("redis://127.0.0.1:{port}")).run().await;
    assert_eq!(output.code, Some(69), "{output:?}");
    let lines = output.stderr.lines().filter(|line| line.contains("waiting for Redis")).count();
    assert_eq!(lines, 1, "{}", output.stderr);
}

#[tokio::test]
async fn a_port_in_use_is_reported_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flags in [["--listen", &address, "--admin", "127.0.0.1:0"], ["--listen", "127.0.0.1:0", "--admin", &address]] {
        let output = fanfare(&["serve", "--log", "text"]).args(flags).run().await;
        assert_eq!(output.code, Some(69), "{output:?}");
        let faults = printed_faults(&output);
        assert!(faults.len() == 1 && faults[0].contains(&address), "{faults:?}");
    }
}

#[tokio::test]
async fn the_first_log_line_has_the_bound_addresses_and_where_the_demo_is() {
    let cluster = one_node().await;
    let node = &cluster.nodes[0];
    let log = node.log();
    let first = log.lines().next().unwrap_or_default();
    assert!(first.contains(&node.listen.to_string()) && first.contains(&node.admin.to_string()), "{first}");
    assert!(first.contains(&format!("http://{}/demo/", node.listen)), "{first}");
}

#[tokio::test]
async fn metrics_are_in_the_format_of_prometheus() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    client.publish("a", json!("x")).await;
    client.message().await;
    let start = client.join("b").await["cursor"].clone();
    client.join_with(json!({"room": "b", "since": start})).await;
    let closing = Client::connect(cluster.address(0)).await;
    closing.close().await;
    let reply = http::get(cluster.nodes[0].admin, "/metrics").send().await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").starts_with("text/plain"), "{:?}", reply.headers);
    let scrape = prometheus::parse(&reply.text).unwrap_or_else(|line| panic!("a scraper would refuse {line}"));
    for name in [
        "sessions",
        "rooms",
        "members",
        "sessions_opened_total",
        "sessions_closed_total",
        "messages_published_total",
        "messages_delivered_total",
        "delivered_bytes_total",
        "fanout_seconds",
        "publish_seconds",
        "outbox_bytes",
        "slow_consumers_total",
        "rate_limited_total",
        "backplane_up",
        "backplane_reconnects_total",
        "backplane_gaps_total",
        "resumes_total",
        "drain_phase",
        "build_info",
    ] {
        assert!(scrape.has(&format!("fanfare_{name}")), "no fanfare_{name} in\n{}", reply.text);
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(scrape.has(name), "no {name}");
    }
    let at_least = |name: &str, least: f64| {
        assert!(
            scrape.sum(&format!("fanfare_{name}")) >= least,
            "{name} is {}",
            scrape.sum(&format!("fanfare_{name}"))
        );
    };
    for (name, least) in [
        ("sessions", 1.0),
        ("rooms", 2.0),
        ("members", 2.0),
        ("sessions_opened_total", 2.0),
        ("messages_published_total", 1.0),
        ("messages_delivered_total", 1.0),
        ("delivered_bytes_total", 10.0),
        ("resumes_total", 1.0),
    ] {
        at_least(name, least);
    }
    assert!(!reply.text.contains("room=\"") && !reply.text.contains("user=\""), "no room or user in a label");
}

#[tokio::test]
async fn the_admin_listener_reports_alive_and_ready() {
    let cluster = one_node().await;
    let admin = cluster.nodes[0].admin;
    assert_eq!(http::get(admin, "/livez").send().await.status, 200);
    assert_eq!(http::get(admin, "/readyz").send().await.status, 200);
    assert_eq!(http::get(admin, "/nothing").send().await.status, 404);
    assert_eq!(http::get(admin, "/drain").send().await.status, 405);
}

#[tokio::test]
async fn post_drain_starts_a_drain() {
    let mut cluster = Cluster::embedded().drain(3).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    let reply = http::call("POST", cluster.nodes[0].admin, "/drain").send().await;
    assert!((200..300).contains(&reply.status), "{}: {}", reply.status, reply.text);
    let hint = client.take("reconnect").await.json;
    assert!(hint["after_ms"].is_u64() && hint["reason"].is_string(), "{hint}");
    assert_eq!(client.ended().await.code, Some(1012));
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
}

#[tokio::test]
async fn a_draining_node_refuses_sessions_and_serves_publishes() {
    let mut cluster = Cluster::embedded().drain(30).start().await;
    let (admin, public) = (cluster.nodes[0].admin, cluster.address(0));
    let mut clients = join_all((0..4).map(|_| Client::connect(public))).await;
    // The drain lasts until this publish is finished.
    let unfinished = UnfinishedPublish::begin(public).await;
    cluster.nodes[0].terminate();
    eventually("the node is not ready", async || http::get(admin, "/readyz").send().await.status == 503).await;
    assert_eq!(http::get(admin, "/livez").send().await.status, 200);
    let upgrade = http::get(public, "/ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let refused = upgrade.send().await;
    assert_eq!(refused.problem(503), "draining");
    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{:?}", refused.headers);
    http::post(public, "/v1/rooms/a", &json!(1)).send().await.expect(200);
    for client in &mut clients {
        client.take("reconnect").await;
        assert_eq!(client.ended().await.code, Some(1012));
    }
    assert_eq!(unfinished.finish().await, "HTTP/1.1 200 OK\r\n");
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
}

/// The acceptor looked at the end of the drain only when no connection waited. At 20 a second these take 48 s.
#[tokio::test]
async fn connections_that_wait_for_their_rate_do_not_prolong_a_drain() {
    let slow = "[limits]\naccepts_per_second = 20\n";
    let mut cluster = Cluster::embedded().config(slow).drain(2).start().await;
    let address = cluster.address(0);
    let storm = join_all((0..1_000).map(|_| tokio::net::TcpStream::connect(address))).await;
    assert!(storm.iter().all(Result::is_ok), "the kernel takes them, up to its backlog");
    cluster.nodes[0].terminate();
    assert_eq!(cluster.nodes[0].exit(patience()).await.code(), Some(0));
}

#[tokio::test]
async fn clients_that_do_not_answer_a_close_do_not_prolong_a_drain() {
    let mut cluster = Cluster::embedded().drain(2).start().await;
    let public = cluster.address(0);
    let silent = join_all((0..40).map(|_| Client::connect(public))).await;
    cluster.nodes[0].terminate();
    // The last closes go out after 1.7 s. A client has 3 s to answer one, which would make it 4.7 s.
    let status = cluster.nodes[0].exit(patient(Duration::from_millis(4_500))).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
    drop(silent);
}

#[tokio::test]
async fn an_idle_node_exits_at_once_on_sigterm() {
    let mut cluster = Cluster::embedded().drain(60).start().await;
    cluster.nodes[0].terminate();
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
}

#[tokio::test]
async fn pub_and_sub_carry_a_message() {
    let cluster = one_node().await;
    let (ws, web) = (format!("ws://{}", cluster.address(0)), format!("http://{}", cluster.address(0)));
    let scratch = Scratch::new();
    let sub = fanfare(&["sub", "a", "b", "--url", &ws]).start(scratch.path());
    eventually("sub has joined", async || {
        let sessions = http::get(cluster.address(0), "/v1/rooms/b").send().await.json()["sessions"].clone();
        sessions == 1
    })
    .await;
    let output = fanfare(&["pub", "b", r#"{"n": 1.0}"#, "--url", &web, "--event", "e"]).run().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let reply: Value = serde_json::from_str(&output.stdout).expect("pub prints the reply");
    eventually("sub has printed the message", async || sub.log().contains(r#""data":{"n":1.0}"#)).await;
    let log = sub.log();
    let line = log.lines().find(|line| line.contains(r#""type":"message""#)).unwrap();
    let message: Value = serde_json::from_str(line).expect("a message is one line of JSON");
    assert_eq!((&message["room"], &message["event"]), (&json!("b"), &json!("e")));
    assert_eq!(message["cursor"], reply["cursor"]);
}

#[tokio::test]
async fn pub_prints_why_it_was_refused() {
    let cluster = one_node().await;
    let web = format!("http://{}", cluster.address(0));
    let refused = fanfare(&["pub", "$secret", "1", "--url", &web]).run().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("room_invalid"), "{}", refused.stderr);
    assert_eq!(fanfare(&["pub", "a", "not json", "--url", &web]).run().await.code, Some(65));
}

#[tokio::test]
async fn health_asks_the_admin_listener() {
    let cluster = one_node().await;
    let admin = cluster.nodes[0].admin.to_string();
    assert_eq!(fanfare(&["health", "--admin", &admin]).run().await.code, Some(0));
    let unused = format!("127.0.0.1:{}", fanfare_tests::ports::free_port());
    assert_eq!(fanfare(&["health", "--admin", &unused]).run().await.code, Some(1));
}

#[tokio::test]
async fn client_commands_take_the_flag_before_the_environment_before_the_default() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let (url, admin) = (format!("http://{}", cluster.address(0)), cluster.nodes[0].admin.to_string());
    let unused = format!("127.0.0.1:{}", fanfare_tests::ports::free_port());

    let output = fanfare(&["pub", "a", "1"]).env("FANFARE_URL", &url).run().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(client.message().await["data"], 1);
    let by_flag = fanfare(&["pub", "a", "2", "--url", &url]).env("FANFARE_URL", &format!("http://{unused}"));
    let output = by_flag.run().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(client.message().await["data"], 2);

    assert_eq!(fanfare(&["health"]).env("FANFARE_ADMIN", &admin).run().await.code, Some(0));
    assert_eq!(fanfare(&["health"]).env("FANFARE_ADMIN", &unused).run().await.code, Some(1));
    let by_flag = fanfare(&["health", "--admin", &admin]).env("FANFARE_ADMIN", &unused);
    assert_eq!(by_flag.run().await.code, Some(0));

    for (command, default) in [("pub", "[default: ws://127.0.0.1:8080]"), ("health", "[default: 127.0.0.1:8081]")] {
        let help = fanfare(&[command, "--help"]).run().await.stdout;
        assert!(help.contains(default), "{help}");
    }
}
