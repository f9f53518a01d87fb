//! Input outside the protocol: a close for a client of another protocol, an error for a wrong command.

use fanfare_tests::Client;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::fixtures::{node_and_client, one_node};

#[tokio::test]
async fn a_client_of_another_protocol_is_closed_with_4400() {
    let cluster = one_node().await;
    for message in [
        Message::text("hello"),
        Message::text(""),
        Message::text("[]"),
        Message::text("\"text\""),
        Message::text("7"),
        Message::text("{\"type\":\"ping\""),
        Message::text("{\"type\":\"ping\"} {}"),
        Message::text("42[\"event\"]"),
        Message::binary(br#"{"type":"ping"}"#.as_slice()),
    ] {
        let mut client = Client::connect(cluster.address(0)).await;
        client.join("a").await;
        client.try_send(message.clone()).await.unwrap();
        assert_eq!(client.ended().await.code, Some(4400), "{message:?}");
    }
}

#[tokio::test]
async fn unknown_types_are_refused_and_unknown_fields_ignored() {
    let (_cluster, mut client) = node_and_client().await;
    for kind in ["dance", "JOIN", "joined", "message", ""] {
        assert_eq!(client.refused(json!({"type": kind})).await, "unknown_type", "{kind:?}");
    }
    client.join_with(json!({"room": "a", "colour": {"of": ["the", "sky"]}})).await;
    let pong = client.ask(json!({"type": "ping", "type2": null})).await;
    assert_eq!(pong["type"], "pong");
}

#[tokio::test]
async fn fields_of_the_wrong_type_are_a_bad_request() {
    let (_cluster, mut client) = node_and_client().await;
    for command in [
        json!({"type": "join"}),
        json!({"type": "join", "room": 5}),
        json!({"type": "join", "room": "a", "since": 1}),
        json!({"type": "join", "room": "a", "history": "x"}),
        json!({"type": "join", "room": "a", "history": -1}),
        json!({"type": "join", "room": "a", "presence": "yes"}),
        json!({"type": "join", "room": "a", "echo": 1}),
        json!({"type": "join", "room": "a", "exclude": "s"}),
        json!({"type": "join", "room": "a", "exclude": ["1", "2", "3", "4", "5", "6", "7", "8", "9"]}),
    ] {
        assert_eq!(client.refused(command.clone()).await, "bad_request", "{command}");
    }
    client.join("a").await;
}

#[tokio::test]
async fn commands_without_required_fields_are_a_bad_request() {
    let (_cluster, mut client) = node_and_client().await;
    for command in [
        json!({"type": "leave"}),
        json!({"type": "publish", "data": 1}),
        json!({"type": "publish", "room": "a"}),
        json!({"type": "publish", "room": "a", "data": 1, "event": 5}),
        json!({"type": "publish", "room": "a", "data": 1, "key": 5}),
        json!({"type": "presence", "room": null}),
        json!({"type": "history"}),
        json!({"type": "history", "room": "a", "limit": "x"}),
        json!({"type": "history", "room": "a", "since": "x"}),
        json!({"type": "auth"}),
    ] {
        assert_eq!(client.refused(command.clone()).await, "bad_request", "{command}");
    }
    client.publish("a", json!(1)).await;
}

#[tokio::test]
async fn ids_up_to_2_to_the_53_are_echoed_unchanged() {
    let (_cluster, mut client) = node_and_client().await;
    for id in [0_u64, 1, 9_007_199_254_740_992] {
        client.send(json!({"type": "ping", "id": id})).await;
        assert_eq!(client.take("pong").await.json["id"], id);
        client.send(json!({"type": "dance", "id": id})).await;
        assert_eq!(client.take("error").await.json["id"], id);
    }
}

#[tokio::test]
async fn a_bad_id_is_refused() {
    let (_cluster, mut client) = node_and_client().await;
    for id in ["-1", "1.5", "\"x\"", "9007199254740993", "[]", "1e3000"] {
        client.send_text(&format!(r#"{{"type":"ping","id":{id}}}"#)).await;
        let error = client.next().await;
        assert_eq!((error.kind(), &error.json["code"]), ("error", &json!("bad_request")), "{id}: {}", error.text);
    }
}

#[tokio::test]
async fn an_error_has_a_code_a_message_and_whether_to_retry() {
    let (_cluster, mut client) = node_and_client().await;
    let error = client.ask(json!({"type": "leave", "room": "a"})).await;
    assert_eq!((&error["type"], &error["room"], &error["retryable"]), (&json!("error"), &json!("a"), &json!(false)));
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
}

#[tokio::test]
async fn an_open_gateway_refuses_auth_commands() {
    let (_cluster, mut client) = node_and_client().await;
    assert_eq!(client.refused(json!({"type": "auth", "token": "x"})).await, "unauthorized");
    client.join("a").await;
}

#[tokio::test]
async fn a_close_frame_is_answered() {
    let (cluster, client) = node_and_client().await;
    client.close().await;
    Client::connect(cluster.address(0)).await;
}
