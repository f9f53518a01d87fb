//! The log when nobody takes its lines: a reader of standard error that goes away, or that stops reading, must not change
//! what members get.

use std::io::{PipeReader, pipe};

use fanfare_tests::cluster::{Node, serve};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Client, http};
use serde_json::json;

use crate::fixtures::metric;

/// A node over Redis whose standard error is a pipe with this reader.
async fn node_that_logs_to_a_pipe(redis: &Redis, scratch: &Scratch) -> (Node, PipeReader) {
    let (reader, writer) = pipe().expect("a pipe");
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
