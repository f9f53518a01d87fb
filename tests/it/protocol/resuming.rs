//! Resumes by `since`: which messages come, and the gap when some of them are gone.

use fanfare_tests::{Client, Frame};
use serde_json::json;

use crate::fixtures::{NO_RATE, node_and_client, one_node_with, publish_numbers, split};

#[tokio::test]
async fn since_is_exclusive_and_missed_messages_come_before_live_ones() {
    let (cluster, mut client) = node_and_client().await;
    client.publish("a", json!(1)).await;
    let at = client.publish("a", json!(2)).await["cursor"].clone();
    client.publish("a", json!(3)).await;
    client.publish("a", json!(4)).await;
    let mut back = Client::connect(cluster.address(0)).await;
    let joined = back.join_with(json!({"room": "a", "since": at})).await;
    assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &at), "{joined}");
    assert!(joined.get("gap").is_none(), "{joined}");
    client.publish("a", json!(5)).await;
    assert_eq!(back.data(3).await, [json!(3), json!(4), json!(5)]);
    assert!(back.so_far().await.is_empty());
}

#[tokio::test]
async fn a_resume_at_the_head_misses_nothing() {
    let (cluster, mut client) = node_and_client().await;
    let at = client.publish("a", json!(1)).await["cursor"].clone();
    let mut back = Client::connect(cluster.address(0)).await;
    let joined = back.join_with(json!({"room": "a", "since": at})).await;
    assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &at), "{joined}");
    assert!(back.so_far().await.is_empty());
}

#[tokio::test]
async fn offset_zero_is_the_beginning() {
    let (_cluster, mut client) = node_and_client().await;
    let start = client.join("a").await["cursor"].clone();
    client.leave("a").await;
    client.publish("a", json!(1)).await;
    let joined = client.join_with(json!({"room": "a", "since": start})).await;
    assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &start));
    assert_eq!(client.data(1).await, [json!(1)]);
}

/// More than a node keeps beyond the configured 10, so that the oldest are certainly gone.
const MANY: usize = 2_000;

#[tokio::test]
async fn a_cursor_older_than_the_history_gets_the_number_of_missed_messages() {
    let rules = "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 10, ttl = \"1h\" }\n";
    let cluster = one_node_with(&format!("{rules}{NO_RATE}")).await;
    let mut client = Client::connect(cluster.address(0)).await;
    let at = client.publish("a", json!(0)).await["cursor"].clone();
    publish_numbers(&cluster, "a", 1, MANY).await;
    let joined = client.join_with(json!({"room": "a", "since": at})).await;
    assert_eq!(joined["resumed"], false, "{joined}");
    let (epoch, from) = split(&joined["cursor"]);
    assert_eq!(epoch, split(&at).0);
    assert_eq!(joined["gap"], json!({"missed": from - 1}), "everything between the two cursors is gone: {joined}");
    let messages = client.so_far().await;
    assert!(messages.len() >= 10, "at least the configured number of messages is kept: {}", messages.len());
    let offsets: Vec<u64> = messages.iter().map(|frame: &Frame| split(&frame.json["cursor"]).1).collect();
    let expected: Vec<u64> = (from + 1..=MANY as u64 + 1).collect();
    assert_eq!(offsets, expected, "after the gap nothing else is missing");
}

#[tokio::test]
async fn another_epoch_is_a_gap_of_unknown_size() {
    let (_cluster, mut client) = node_and_client().await;
    for n in 1..=3 {
        client.publish("a", json!(n)).await;
    }
    let joined = client.join_with(json!({"room": "a", "since": "another-epoch.2"})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]), (&json!(false), &json!({"missed": null})), "{joined}");
    assert_eq!(split(&joined["cursor"]).1, 0, "before the oldest kept one: {joined}");
    assert_eq!(client.data(3).await, [json!(1), json!(2), json!(3)]);
}

#[tokio::test]
async fn an_offset_beyond_the_head_is_another_epoch() {
    let (_cluster, mut client) = node_and_client().await;
    let at = client.publish("a", json!(1)).await["cursor"].clone();
    let beyond = format!("{}.99", split(&at).0);
    let joined = client.join_with(json!({"room": "a", "since": beyond})).await;
    assert_eq!((&joined["resumed"], &joined["gap"]), (&json!(false), &json!({"missed": null})), "{joined}");
    assert_eq!(client.data(1).await, [json!(1)]);
}

#[tokio::test]
async fn a_malformed_cursor_is_a_bad_request() {
    let (_cluster, mut client) = node_and_client().await;
    for since in
        ["", "abcdefgh", "abcdefgh.", ".1", "abcdefgh.x", "abcdefgh.-1", "short.1", "abc defgh.1", "abcdefgh.1~"]
    {
        let code = client.refused(json!({"type": "join", "room": "a", "since": since})).await;
        assert_eq!(code, "bad_request", "{since:?}");
    }
    client.join("a").await;
}
