//! `data` byte for byte: every reader gets what the publisher wrote, except white space between tokens.

use fanfare_tests::wait::within;
use fanfare_tests::{Client, http};
use serde_json::json;

use crate::fixtures::node_and_client;

/// What a publisher writes, and what every reader must get.
const TEXTS: [(&str, &str); 10] = [
    ("12345678901234567890123", "12345678901234567890123"),
    ("1.0", "1.0"),
    ("-0.0e+10", "-0.0e+10"),
    (r#"{ "b" : 1 , "a" : [ 1.50 , 2 ] }"#, r#"{"b":1,"a":[1.50,2]}"#),
    ("[\t1,\r\n 2 ]", "[1,2]"),
    (r#"" two  spaces \" stay ""#, r#"" two  spaces \" stay ""#),
    (r#""\u00e9\u00E9\/\/ é \ud83d\ude00 😀""#, r#""\u00e9\u00E9\/\/ é \ud83d\ude00 😀""#),
    (r#"{"a":1,"a":2}"#, r#"{"a":1,"a":2}"#),
    ("null", "null"),
    ("[]", "[]"),
];

#[tokio::test]
async fn data_keeps_every_byte_but_white_space_between_tokens() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    other.join("a").await;
    for (written, expected) in TEXTS {
        client.send_text(&format!(r#"{{"type":"publish","room":"a","data":{written}}}"#)).await;
        let own = client.take("message").await.text;
        assert!(own.contains(&format!(r#""data":{expected}"#)), "{written} became {own}");
        assert_eq!(own, other.take("message").await.text, "every member gets the same bytes");
    }
}

#[tokio::test]
async fn an_http_publish_keeps_the_same_bytes() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    for (written, expected) in TEXTS {
        let call = http::call("POST", cluster.address(0), "/v1/rooms/a").header("content-type", "application/json");
        call.body(written).send().await.expect(200);
        let message = client.take("message").await.text;
        assert!(message.contains(&format!(r#""data":{expected}"#)), "{written} became {message}");
    }
}

#[tokio::test]
async fn a_message_has_the_same_bytes_live_on_resume_and_in_history() {
    let (cluster, mut client) = node_and_client().await;
    let start = client.join("a").await["cursor"].clone();
    client
        .send_text(r#"{"type":"publish","event":"e","room":"a","data":{ "big": 12345678901234567890, "f": 1.0 }}"#)
        .await;
    let live = client.take("message").await.text;
    let mut back = Client::connect(cluster.address(0)).await;
    back.join_with(json!({"room": "a", "since": start})).await;
    assert_eq!(back.take("message").await.text, live);
    client.send(json!({"type": "history", "room": "a"})).await;
    let history = client.take("history").await.text;
    assert!(history.contains(&live), "{live} is not in {history}");
    let over_http = http::get(cluster.address(0), "/v1/rooms/a/history").send().await;
    assert!(over_http.text.contains(&live), "{live} is not in {}", over_http.text);
}

#[tokio::test]
async fn deeply_nested_data_gets_a_reply_and_never_ends_the_process() {
    let (cluster, mut client) = node_and_client().await;
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    client.send_text(&format!(r#"{{"type":"publish","id":900,"room":"a","data":{deep}}}"#)).await;
    match within("an answer to deep data", client.try_next()).await {
        Ok(frame) => assert_eq!(frame.json["id"], 900, "{}", frame.text),
        Err(ended) => assert_eq!(ended.code, Some(4400), "{ended:?}"),
    }
    Client::connect(cluster.address(0)).await.publish("a", json!("still here")).await;
}
