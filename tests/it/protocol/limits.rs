//! What happens at each limit: sizes, rates, the number of errors, an unread connection.

use std::time::Instant;

use fanfare_tests::Client;
use fanfare_tests::wait::eventually;
use serde_json::{Value, json};

use crate::fixtures::{metric, node_and_client, one_node_with, split};
use crate::sentences::KEEP_ALL;

/// The default of `message_bytes`.
const MESSAGE_BYTES: usize = 65_536;

/// A JSON string of `bytes` bytes, quotes included.
fn text_of(bytes: usize) -> Value {
    json!("x".repeat(bytes - 2))
}

#[tokio::test]
async fn a_message_of_the_full_size_goes_through() {
    let (_cluster, mut client) = node_and_client().await;
    client.join("a").await;
    client.publish("a", text_of(MESSAGE_BYTES)).await;
    assert_eq!(client.message().await["data"], text_of(MESSAGE_BYTES));
}

#[tokio::test]
async fn a_message_a_little_too_large_is_refused_and_the_connection_stays() {
    let (_cluster, mut client) = node_and_client().await;
    for bytes in [MESSAGE_BYTES + 1, MESSAGE_BYTES + 3_900] {
        let code = client.refused(json!({"type": "publish", "room": "a", "data": text_of(bytes)})).await;
        assert_eq!(code, "message_too_large", "{bytes}");
    }
    client.publish("a", json!(1)).await;
}

#[tokio::test]
async fn a_frame_more_than_4_kib_over_the_limit_closes_with_1009() {
    let (_cluster, mut client) = node_and_client().await;
    let command = json!({"type": "publish", "room": "a", "data": text_of(MESSAGE_BYTES + 4_097)});
    // The server may close before it has read all of it.
    let _ = client.try_send(command.to_string().into()).await;
    assert_eq!(client.ended().await.code, Some(1009));
}

#[tokio::test]
async fn the_size_limit_is_the_configured_one() {
    let cluster = one_node_with("[limits]\nmessage_bytes = 2000\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    assert_eq!(client.welcome["limits"]["message_bytes"], 2000);
    client.publish("a", text_of(2000)).await;
    let code = client.refused(json!({"type": "publish", "room": "a", "data": text_of(2001)})).await;
    assert_eq!(code, "message_too_large");
}

#[tokio::test]
async fn publishes_over_the_rate_are_refused_with_a_hint() {
    let cluster = one_node_with("[limits]\npublishes_per_second = 5\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    let (begun, mut served, mut refused) = (Instant::now(), 0, Vec::new());
    // Sent without waiting for answers, 15 are more than a burst and five a second on any machine; 15,000 without a
    // refusal show that nothing limits them.
    for _ in 0..1000 {
        for id in 1..=15 {
            client.send(json!({"type": "publish", "id": id, "room": "a", "data": id})).await;
        }
        for _ in 1..=15 {
            let reply = client.next().await.json;
            match reply["type"].as_str() {
                Some("published") => served += 1,
                _ => refused.push(reply),
            }
        }
        if !refused.is_empty() {
            break;
        }
    }
    assert!(!refused.is_empty(), "none of {served} publishes was refused");
    let most = 10 + 5 * (begun.elapsed().as_secs() + 1);
    assert!((10..=most).contains(&served), "a burst of twice the rate, and five more each second: {served} of {most}");
    for error in refused {
        assert_eq!((&error["code"], &error["retryable"]), (&json!("rate_limited"), &json!(true)), "{error}");
        assert!(error["retry_after_ms"].as_u64().is_some_and(|ms| ms <= 1000), "{error}");
    }
}

#[tokio::test]
async fn publishes_far_over_the_rate_close_with_4429() {
    let cluster = one_node_with("[limits]\npublishes_per_second = 5\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    // More than the burst of 10, the 20 errors that are allowed in ten seconds, and the 50 publishes of ten seconds.
    for id in 1..=90 {
        let publish = json!({"type": "publish", "id": id, "room": "a", "data": 1});
        if client.try_send(publish.to_string().into()).await.is_err() {
            break;
        }
    }
    assert_eq!(client.ended().await.code, Some(4429));
}

#[tokio::test]
async fn twenty_errors_are_allowed_and_one_more_closes_with_4429() {
    let (_cluster, mut client) = node_and_client().await;
    for _ in 0..20 {
        assert_eq!(client.refused(json!({"type": "dance"})).await, "unknown_type");
    }
    client.ask(json!({"type": "ping"})).await;
    client.send(json!({"type": "dance"})).await;
    assert_eq!(client.ended().await.code, Some(4429));
}

#[tokio::test]
async fn a_member_that_does_not_read_is_closed_and_resumes_without_a_loss() {
    let cluster = one_node_with(KEEP_ALL).await;
    let mut slow = Client::connect(cluster.address(0)).await;
    let (epoch, mut at) = split(&slow.join("a").await["cursor"]);
    let mut publisher = Client::connect(cluster.address(0)).await;
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("a").await;
    // 12 MB: far more than the outbox (256 KiB) and what the kernel holds for an unread socket.
    let total = 200;
    for _ in 0..total {
        publisher.publish("a", text_of(60_000)).await;
        assert_eq!(other.message().await["room"], "a", "other members are served without delay");
    }
    eventually("the slow consumer is closed", async || {
        metric(cluster.nodes[0].admin, "fanfare_slow_consumers_total").await > 0.5
    })
    .await;
    let closed = slow.ended().await;
    assert!(matches!(closed.code, Some(4508) | None), "the code comes if the socket still takes it: {closed:?}");
    for frame in slow.received() {
        at += 1;
        assert_eq!(split(&frame.json["cursor"]), (epoch.clone(), at));
    }
    let mut back = Client::connect(cluster.address(0)).await;
    let joined = back.join_with(json!({"room": "a", "since": format!("{epoch}.{at}")})).await;
    assert_eq!(joined["resumed"], true, "{joined}");
    while at < total {
        at += 1;
        assert_eq!(split(&back.message().await["cursor"]), (epoch.clone(), at));
    }
}
