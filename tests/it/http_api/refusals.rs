//! Every refusal of the HTTP API is a problem document with a code.

use fanfare_tests::http::{call, get, post};
use serde_json::json;

use crate::fixtures::{one_node, one_node_with};

#[tokio::test]
async fn an_unknown_path_is_a_404_problem() {
    let cluster = one_node().await;
    for path in ["/nothing", "/v1/nothing", "/v1/rooms/a/nothing", "/v2/rooms/a"] {
        assert_eq!(get(cluster.address(0), path).send().await.problem(404), "not_found", "{path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_a_405_with_the_allowed_methods() {
    let cluster = one_node().await;
    for (method, path, right) in [
        ("PUT", "/v1/rooms/a", "POST"),
        ("GET", "/v1/publish", "POST"),
        ("POST", "/v1/rooms/a/history", "GET"),
        ("GET", "/v1/users/u", "DELETE"),
        ("POST", "/ws", "GET"),
    ] {
        let reply = call(method, cluster.address(0), path).send().await;
        assert_eq!(reply.problem(405), "method_not_allowed", "{method} {path}");
        let allow = reply.header("allow");
        assert!(allow.split(',').any(|allowed| allowed.trim() == right), "{method} {path}: {allow:?}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_a_bad_request() {
    let cluster = one_node().await;
    for body in ["", "{", "{} {}", "nul", "\u{1}"] {
        let reply =
            call("POST", cluster.address(0), "/v1/rooms/a").header("content-type", "application/json").body(body);
        assert_eq!(reply.send().await.problem(400), "bad_request", "{body:?}");
    }
    let batch = call("POST", cluster.address(0), "/v1/publish").header("content-type", "application/json").body("[{]");
    assert_eq!(batch.send().await.problem(400), "bad_request");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_a_413() {
    let cluster = one_node().await;
    for (path, bytes) in [("/v1/rooms/a", 65_537), ("/v1/rooms/a", 3_000_000), ("/v1/publish", 1_048_577 + 4_096)] {
        let body = json!("x".repeat(bytes - 2));
        // A server that stops reading may also reset the connection; then only the next request shows that it still serves.
        if let Ok(reply) = post(cluster.address(0), path, &body).try_send().await {
            assert_eq!(reply.problem(413), "message_too_large", "{path} {bytes}");
        }
    }
    post(cluster.address(0), "/v1/rooms/a", &json!("x".repeat(65_534))).send().await.expect(200);
}

#[tokio::test]
async fn a_bad_room_name_is_a_400() {
    let cluster = one_node().await;
    for room in ["%24secret", "a%20b", "%7B", "%C3%A9"] {
        let path = format!("/v1/rooms/{room}");
        assert_eq!(post(cluster.address(0), &path, &json!(1)).send().await.problem(400), "room_invalid", "{room}");
        assert_eq!(get(cluster.address(0), &path).send().await.problem(400), "room_invalid", "{room}");
    }
}

#[tokio::test]
async fn history_of_a_room_without_history_is_refused() {
    let cluster = one_node_with("[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\npresence = false\n").await;
    let history = get(cluster.address(0), "/v1/rooms/typing:1/history").send().await;
    assert_eq!(history.json()["code"], "history_off", "{}", history.text);
    let presence = get(cluster.address(0), "/v1/rooms/typing:1/presence").send().await;
    assert_eq!(presence.json()["code"], "presence_off", "{}", presence.text);
    let published = post(cluster.address(0), "/v1/rooms/typing:1", &json!(1)).send().await.expect(200);
    assert!(published.get("cursor").is_none(), "{published}");
}
