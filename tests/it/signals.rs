//! Signals, and the limit of file descriptors: what the surroundings of a process do to it.

use std::net::SocketAddr;

use fanfare_tests::cluster::{Node, binary, serve};
use fanfare_tests::ports::free_port;
use fanfare_tests::process::{Launch, Process};
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience, within};
use fanfare_tests::{Client, Cluster, http};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::fixtures::{UnfinishedPublish, metric, one_node};

#[tokio::test]
async fn hangup_and_quit_begin_a_drain() {
    for signal in ["HUP", "QUIT"] {
        let mut cluster = one_node().await;
        let mut client = Client::connect(cluster.address(0)).await;
        cluster.nodes[0].signal(signal);
        assert_eq!(client.take("reconnect").await.json["reason"], "draining", "{signal}");
        assert_eq!(cluster.nodes[0].exit(patience()).await.code(), Some(0), "{signal}");
    }
}

/// The process waited for the requests that were under way, as after the first signal.
#[tokio::test]
async fn a_second_signal_ends_the_process_although_a_request_is_under_way() {
    let mut cluster = Cluster::embedded().drain(60).start().await;
    let node = &mut cluster.nodes[0];
    let unfinished = UnfinishedPublish::begin(node.listen).await;
    node.terminate();
    eventually("the drain has begun", async || node.log().contains("draining")).await;
    node.terminate();
    assert_eq!(node.exit(patience()).await.code(), Some(0));
    assert_eq!(unfinished.rest().await, "", "the request was cut off, not answered when its time was over");
}

/// Kubernetes' `preStop` asks for the drain, and SIGTERM follows. It counted as the second signal.
#[tokio::test]
async fn the_first_sigterm_cut_a_drain_short_that_was_begun_in_another_way() {
    for first in ["HUP", "POST /drain"] {
        let mut cluster = Cluster::embedded().drain(60).start().await;
        let node = &mut cluster.nodes[0];
        let unfinished = [UnfinishedPublish::begin(node.listen).await, UnfinishedPublish::begin(node.listen).await];
        match first {
            "HUP" => node.signal("HUP"),
            _ => assert_eq!(http::call("POST", node.admin, "/drain").send().await.status, 202),
        }
        eventually("the drain has begun", async || node.log().contains("draining")).await;
        node.terminate();
        eventually("SIGTERM was taken", async || node.log().contains("the drain goes on")).await;
        let [finished, cut] = unfinished;
        assert_eq!(finished.finish().await, "HTTP/1.1 200 OK\r\n", "{first}");
        node.terminate();
        assert_eq!(node.exit(patience()).await.code(), Some(0), "{first}");
        assert_eq!(cut.rest().await, "", "{first}: the second SIGTERM ends the process at once");
    }
}

/// A node that waits for a Redis that does not come, and its listener for operators.
async fn node_that_waits_for_redis(scratch: &Scratch) -> (Process, SocketAddr) {
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let redis = format!("redis://127.0.0.1:{}", free_port());
    let launch = Launch::new("a", binary()).args(["serve", "--log", "text", "--listen", "127.0.0.1:0"]);
    let launch = launch.args(["--admin", &admin.to_string(), "--redis", &redis, "--redis-wait", "60"]);
    let process = launch.start(scratch.path());
    eventually("it waits for Redis", async || process.log().contains("waiting for Redis")).await;
    (process, admin)
}

/// Operators were served only once Redis had replied, so a liveness probe killed the node.
#[tokio::test]
async fn the_operators_port_was_mute_while_the_node_waited_for_redis() {
    let scratch = Scratch::new();
    let (_process, admin) = node_that_waits_for_redis(&scratch).await;
    assert_eq!(http::get(admin, "/livez").send().await.status, 200);
    let ready = http::get(admin, "/readyz").send().await;
    assert_eq!((ready.status, ready.text.trim()), (503, r#"{"status":"starting","backplane":"down"}"#));
    assert_eq!(metric(admin, "fanfare_backplane_up").await, 0.0);
    assert_eq!(metric(admin, "fanfare_build_info").await, 1.0);
}

/// Signals were taken only once Redis had replied, so each of them killed the process.
#[tokio::test]
async fn signals_killed_a_node_that_waited_for_redis() {
    for end in ["TERM", "INT", "HUP", "QUIT", "POST /drain"] {
        let scratch = Scratch::new();
        let (mut process, admin) = node_that_waits_for_redis(&scratch).await;
        process.signal("USR1");
        process.signal("USR2");
        match end {
            "POST /drain" => assert_eq!(http::call("POST", admin, "/drain").send().await.status, 202),
            signal => process.signal(signal),
        }
        assert_eq!(process.exit(patience()).await.code(), Some(0), "{end}");
        let log = process.log();
        assert!(log.lines().last().is_some_and(|line| line.contains("stopped before Redis")), "{end}: {log}");
    }
}

#[tokio::test]
async fn user_signals_change_nothing() {
    let mut cluster = one_node().await;
    let mut client = Client::connect(cluster.address(0)).await;
    for signal in ["USR1", "USR2"] {
        cluster.nodes[0].signal(signal);
        client.join("a").await;
        client.leave("a").await;
    }
    assert!(cluster.nodes[0].is_running());
    assert_eq!(http::get(cluster.nodes[0].admin, "/readyz").send().await.status, 200);
}

/// A node with these limits of file descriptors, as `ulimit` takes them.
async fn node_with_descriptors(scratch: &Scratch, limits: &str) -> Node {
    let serve = serve(scratch, "a");
    let launch = Launch::new("a", "bash").args(["-c", &format!("ulimit {limits}; exec \"$@\""), "bash"]).follow(&serve);
    Node::ready("a".to_owned(), launch.start(scratch.path()), scratch).await
}

#[tokio::test]
async fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let scratch = Scratch::new();
    let node = node_with_descriptors(&scratch, "-Sn 256").await;
    let max = metric(node.admin, "process_max_fds").await;
    assert!(max > 256.0, "{max}");
}

/// Connects clients until the node has failed so often to accept one, for want of a descriptor.
async fn use_up_descriptors(node: &Node, errors: f64) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    while metric(node.admin, "fanfare_accept_errors_total").await < errors {
        clients.push(TcpStream::connect(node.listen).await.expect("the kernel completes the handshake"));
        assert!(clients.len() < 1_000, "the descriptors are never used up");
    }
    clients
}

/// Without a descriptor the listener for operators could not accept, and each failed accept was a line in the log.
#[tokio::test]
async fn out_of_descriptors_the_operators_port_was_silent_and_the_log_was_full() {
    let scratch = Scratch::new();
    let node = node_with_descriptors(&scratch, "-n 200").await;
    let clients = use_up_descriptors(&node, 20.0).await;
    assert_eq!(http::get(node.admin, "/readyz").send().await.status, 200);
    let lines = node.log().lines().filter(|line| line.contains("cannot accept")).count();
    let seconds = metric(node.admin, "fanfare_accept_errors_total").await / 20.0;
    assert!(lines >= 1 && (lines as f64) <= seconds + 1.0, "{lines} lines in at least {seconds} s");
    // A client that is refused notices it, while those with a descriptor may still send a request.
    let is_closed = |client: &TcpStream| match client.try_read(&mut [0; 16]) {
        Ok(read) => read == 0,
        Err(why) => why.kind() != std::io::ErrorKind::WouldBlock,
    };
    eventually("a client without a descriptor is closed", async || clients.iter().any(is_closed)).await;
}

/// They had no time limit and no number, and took the descriptors that are reserved for the operator.
#[tokio::test]
async fn idle_connections_to_the_operators_port_made_it_silent() {
    let scratch = Scratch::new();
    let node = node_with_descriptors(&scratch, "-n 150").await;
    let _clients = use_up_descriptors(&node, 1.0).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(node.admin).await.expect("the kernel completes the handshake"));
    }
    assert_eq!(http::get(node.admin, "/readyz").send().await.status, 200);
    for connection in &mut idle {
        let read = within("the end of an idle connection", connection.read(&mut [0; 16])).await;
        assert_eq!(read.ok(), Some(0));
    }
}
