//! `POST /v1/rooms/{room}` and `POST /v1/publish`.

use fanfare_tests::http::{call, post};
use serde_json::json;

use crate::fixtures::{node_and_client, one_node, split};

#[tokio::test]
async fn a_json_body_is_the_data_of_a_message() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let reply = post(cluster.address(0), "/v1/rooms/a?event=typing", &json!({"k": 1})).send().await.expect(200);
    assert_eq!(reply["room"], "a");
    let message = client.message().await;
    assert_eq!((&message["data"], &message["event"]), (&json!({"k": 1}), &json!("typing")));
    assert_eq!(message["cursor"], reply["cursor"]);
    assert!(message.get("from").is_none(), "a publish by HTTP has no author: {message}");
}

#[tokio::test]
async fn any_other_body_is_a_json_string() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let text = "a \"quoted\" line\nand {another}";
    let plain = call("POST", cluster.address(0), "/v1/rooms/a").header("content-type", "text/plain");
    plain.body(text).send().await.expect(200);
    assert_eq!(client.message().await["data"], text);
}

#[tokio::test]
async fn a_room_in_the_path_is_percent_encoded() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a/b,c?d").await;
    post(cluster.address(0), "/v1/rooms/a%2Fb%2Cc%3Fd", &json!(1)).send().await.expect(200);
    assert_eq!(client.message().await["room"], "a/b,c?d");
}

#[tokio::test]
async fn an_idempotency_key_publishes_once() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let publish = || post(cluster.address(0), "/v1/rooms/a", &json!(1)).header("idempotency-key", "k");
    let first = publish().send().await.expect(200);
    let second = publish().send().await.expect(200);
    assert_eq!(first, second);
    let third = client.publish_with(json!({"room": "a", "data": 1, "key": "k"})).await;
    assert_eq!(third["cursor"], first["cursor"], "the header has the scope of `key`");
    client.publish("a", json!(2)).await;
    assert_eq!(client.data(2).await, [json!(1), json!(2)]);
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item_in_order() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let batch = json!([
        {"room": "a", "data": 1},
        {"room": "a b", "data": 2},
        {"room": "a", "data": 3, "event": "e", "key": "k"},
        {"room": "a", "data": 3, "key": "k"},
        {"room": "b", "data": 4},
    ]);
    let reply = post(cluster.address(0), "/v1/publish", &batch).send().await.expect(200);
    let items = reply.as_array().unwrap();
    assert_eq!(items.len(), 5, "{reply}");
    assert_eq!(split(&items[0]["cursor"]).1, 1);
    assert_eq!((&items[1]["code"], &items[1]["retryable"]), (&json!("room_invalid"), &json!(false)), "{reply}");
    assert!(items[1]["detail"].is_string(), "{reply}");
    assert_eq!(items[2]["cursor"], items[3]["cursor"]);
    assert_eq!((&items[4]["room"], split(&items[4]["cursor"]).1), (&json!("b"), 1));
    client.publish("a", json!("end")).await;
    assert_eq!(client.data(3).await, [json!(1), json!(3), json!("end")]);
}

#[tokio::test]
async fn a_batch_has_1_to_100_items() {
    let cluster = one_node().await;
    let item = json!({"room": "a", "data": 1});
    for size in [0, 101] {
        let batch = json!(vec![&item; size]);
        let code = post(cluster.address(0), "/v1/publish", &batch).send().await.problem(400);
        assert_eq!(code, "bad_request", "{size}");
    }
    assert_eq!(post(cluster.address(0), "/v1/publish", &item).send().await.problem(400), "bad_request");
}
