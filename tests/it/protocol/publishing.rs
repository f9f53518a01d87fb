//! `publish` and `history`: the fields of a message, idempotency keys, and pages of history.

use fanfare_tests::Client;
use serde_json::json;

use crate::fixtures::{node_and_client, split};

#[tokio::test]
async fn a_message_has_its_author_time_and_cursor() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    let published = other.publish_with(json!({"room": "a", "data": {"k": [1]}, "event": "typing"})).await;
    let message = client.message().await;
    assert_eq!(message["cursor"], published["cursor"]);
    assert_eq!(message["from"], json!({"session": other.session()}));
    assert_eq!(
        (&message["room"], &message["event"], &message["data"]),
        (&json!("a"), &json!("typing"), &json!({"k": [1]}))
    );
    assert!(message["ts"].as_u64().unwrap() > 1_700_000_000_000, "{message}");
    other.publish("a", json!(null)).await;
    let message = client.message().await;
    assert!(message.get("event").is_none() && message.as_object().unwrap().contains_key("data"), "{message}");
}

#[tokio::test]
async fn publishing_needs_no_membership() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("a").await;
    client.publish("a", json!(1)).await;
    assert_eq!(other.data(1).await, [json!(1)]);
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn the_same_key_gives_the_same_cursor_and_is_delivered_once() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    let first = client.publish_with(json!({"room": "a", "data": 1, "key": "k"})).await;
    let second = other.publish_with(json!({"room": "a", "data": 1, "key": "k"})).await;
    assert_eq!(first["cursor"], second["cursor"]);
    let elsewhere = client.publish_with(json!({"room": "b", "data": 1, "key": "k"})).await;
    assert_eq!(split(&elsewhere["cursor"]).1, 1, "keys are per room");
    client.publish("a", json!(2)).await;
    assert_eq!(client.data(2).await, [json!(1), json!(2)]);
}

#[tokio::test]
async fn keys_and_events_are_at_most_64_bytes() {
    let (_cluster, mut client) = node_and_client().await;
    let (fits, long) = ("k".repeat(64), "k".repeat(65));
    client.publish_with(json!({"room": "a", "data": 1, "key": fits, "event": fits})).await;
    for field in ["key", "event"] {
        let mut command = json!({"type": "publish", "room": "a", "data": 1});
        command[field] = json!(long);
        assert_eq!(client.refused(command).await, "bad_request", "{field}");
    }
}

#[tokio::test]
async fn history_is_ascending_and_its_cursor_continues() {
    let (_cluster, mut client) = node_and_client().await;
    for n in 1..=5 {
        client.publish("a", json!(n)).await;
    }
    let all = client.ask(json!({"type": "history", "room": "a"})).await;
    assert_eq!(all["type"], "history");
    let numbers = |reply: &serde_json::Value| -> Vec<u64> {
        reply["messages"].as_array().unwrap().iter().map(|message| message["data"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&all), [1, 2, 3, 4, 5]);
    assert_eq!(split(&all["cursor"]).1, 5);
    let last = client.ask(json!({"type": "history", "room": "a", "limit": 2})).await;
    assert_eq!((numbers(&last), split(&last["cursor"]).1), (vec![4, 5], 5));
    let since = all["messages"][0]["cursor"].clone();
    let page = client.ask(json!({"type": "history", "room": "a", "since": since, "limit": 3})).await;
    assert_eq!((numbers(&page), split(&page["cursor"]).1), (vec![2, 3, 4], 4));
    let rest = client.ask(json!({"type": "history", "room": "a", "since": page["cursor"], "limit": 3})).await;
    assert_eq!((numbers(&rest), split(&rest["cursor"]).1), (vec![5], 5));
    assert!(rest.get("gap").is_none(), "{rest}");
}

#[tokio::test]
async fn the_history_of_a_new_room_is_empty_and_has_a_cursor() {
    let (_cluster, mut client) = node_and_client().await;
    let empty = client.ask(json!({"type": "history", "room": "new"})).await;
    assert_eq!((&empty["messages"], split(&empty["cursor"]).1), (&json!([]), 0));
}

#[tokio::test]
async fn history_since_another_epoch_reports_the_gap() {
    let (_cluster, mut client) = node_and_client().await;
    client.publish("a", json!(1)).await;
    let reply = client.ask(json!({"type": "history", "room": "a", "since": "foreign-epoch.7"})).await;
    assert_eq!(reply["gap"], json!({"missed": null}), "{reply}");
    assert_eq!(reply["messages"].as_array().unwrap().len(), 1, "{reply}");
}
