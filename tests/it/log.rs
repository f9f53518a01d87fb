//! The log when nobody takes its lines: a reader of standard error that goes away, or that stops reading, must not change
//! what members get.

use std::io::{self, PipeReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use fanfare_tests::cluster::{Node, binary, serve};
use fanfare_tests::ports::free_port;
use fanfare_tests::process::Launch;
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Client, http};
use serde_json::json;
use tokio::net::unix::pipe;

use crate::fixtures::metric;

/// A node over Redis whose standard error is a pipe with this reader.
async fn node_that_logs_to_a_pipe(redis: &Redis, scratch: &Scratch) -> (Node, PipeReader) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let launch = serve(scratch, "a").args(["--log-level", "debug", "--drain", "2", "--redis"]).arg(redis.url());
    let process = launch.start_with_stderr(scratch.path(), writer);
    (Node::ready("a".to_owned(), process, scratch).await, reader)
}

/// A publish reaches a member after the connections over which Redis delivers were lost.
async fn a_member_is_reached_after_the_subscriptions_are_lost(node: &Node, redis: &Redis) {
    let mut member = Client::connect(node.listen).await;
    member.join("a").await;
    redis.values("CLIENT KILL TYPE pubsub").await;
    http::post(node.listen, "/v1/rooms/a", &json!("still here")).send().await.expect(200);
    assert_eq!(member.take("message").await.json["data"], "still here");
    eventually("the node is ready", async || http::get(node.admin, "/readyz?backplane=1").send().await.status == 200)
        .await;
}

/// A line that could not be written panicked the task that logged it. After a short loss of Redis no connection to it was
/// made again, and the node looked ready.
#[tokio::test]
async fn a_node_was_deaf_after_the_reader_of_its_log_had_gone() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let (mut node, reader) = node_that_logs_to_a_pipe(&redis, &scratch).await;
    drop(reader);
    a_member_is_reached_after_the_subscriptions_are_lost(&node, &redis).await;
    assert!(metric(node.admin, "fanfare_log_lines_dropped_total").await > 0.0, "lines that are lost are counted");
    node.terminate();
    assert_eq!(node.exit(patience()).await.code(), Some(0), "a drain ends well without a log");
}

/// A pipe that is full blocked the thread that logged: a shard, or all connections to Redis.
#[tokio::test]
async fn a_reader_of_the_log_that_stopped_reading_froze_the_node() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let (mut node, reader) = node_that_logs_to_a_pipe(&redis, &scratch).await;
    node.fill_log().await;
    a_member_is_reached_after_the_subscriptions_are_lost(&node, &redis).await;
    assert!(metric(node.admin, "fanfare_log_lines_dropped_total").await > 0.0, "lines that do not fit are counted");
    node.terminate();
    assert_eq!(node.exit(patience()).await.code(), Some(0), "a drain ends although nobody reads the log");
    drop(reader);
}

/// A pipe that takes no further byte, and its reader.
async fn full_pipe() -> (pipe::Receiver, OwnedFd) {
    let (writer, reader) = pipe::pipe().expect("a pipe");
    writer.writable().await.expect("an empty pipe takes bytes");
    while writer.try_write(&[b'x'; 4096]).is_ok() {}
    (reader, writer.into_blocking_fd().expect("a descriptor"))
}

/// The line that says why was written by the thread that was to end the process.
#[tokio::test]
async fn a_process_that_could_not_say_why_it_ends_did_not_end() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it is bound").to_string();
    let nobody = format!("127.0.0.1:{}", free_port());
    let redis = format!("redis://{nobody}");
    let url = format!("ws://{nobody}");
    let serve = ["serve", "--admin", "127.0.0.1:0", "--listen"];
    let cases = [
        (78, [&serve[..], &["nonsense"]].concat()),
        (69, [&serve[..], &[&taken]].concat()),
        (69, [&serve[..], &["127.0.0.1:0", "--redis", &redis]].concat()),
        (78, vec!["check", "/nowhere/at/all.toml"]),
        (1, vec!["pub", "a", "1", "--url", &url]),
        (1, vec!["health", "--admin", &nobody]),
    ];
    for (code, args) in cases {
        let (_reader, stderr) = full_pipe().await;
        let mut process = Launch::new("fanfare", binary()).args(&args).start_with_stderr(scratch.path(), stderr);
        assert_eq!(process.exit(patience()).await.code(), Some(code), "{args:?}");
    }
}
