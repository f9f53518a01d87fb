//! Signals other than SIGTERM, and the limit of file descriptors: what the surroundings of a process do to it.

use fanfare_tests::cluster::{Node, serve};
use fanfare_tests::process::Launch;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Client, Cluster, http};
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

/// Without a descriptor the listener for operators could not accept, and each failed accept was a line in the log.
#[tokio::test]
async fn out_of_descriptors_the_operators_port_was_silent_and_the_log_was_full() {
    let scratch = Scratch::new();
    let node = node_with_descriptors(&scratch, "-n 200").await;
    let mut clients = Vec::new();
    while metric(node.admin, "fanfare_accept_errors_total").await < 20.0 {
        clients.push(TcpStream::connect(node.listen).await.expect("the kernel completes the handshake"));
        assert!(clients.len() < 1_000, "the descriptors are never used up");
    }
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
