//! The files that the gateway serves, and the form of what it answers in a terminal.

use fanfare_tests::Cluster;
use fanfare_tests::http::{call, get, post};
use serde_json::json;

use crate::fixtures::one_node;

#[tokio::test]
async fn the_root_leads_to_the_demo_pages_unless_they_are_off() {
    let cluster = one_node().await;
    let reply = get(cluster.address(0), "/").send().await;
    assert_eq!((reply.status, reply.header("location")), (307, "/demo/"), "{reply:?}");
    let page = get(cluster.address(0), "/demo/").send().await;
    assert!(page.status == 200 && page.header("content-type").starts_with("text/html"), "{page:?}");
    let without = Cluster::embedded().flags(&["--demo=false"]).start().await;
    assert_eq!(get(without.address(0), "/").send().await.problem(404), "not_found");
}

#[tokio::test]
async fn files_are_compressed_on_request_and_known_by_their_etag() {
    let cluster = one_node().await;
    for path in ["/client.js", "/client.d.ts", "/demo/", "/demo/chat.js"] {
        let plain = get(cluster.address(0), path).send().await;
        let ask = || get(cluster.address(0), path).header("accept-encoding", "gzip, deflate, br");
        let reply = ask().send().await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, "gzip"), "{path}: {:?}", reply.headers);
        let length = |reply: &fanfare_tests::http::Reply| reply.header("content-length").parse::<usize>().unwrap();
        assert!(length(&reply) < length(&plain), "{path}");
        assert!(reply.headers.get_all("vary").iter().any(|value| value == "Accept-Encoding"), "{:?}", reply.headers);
        assert_ne!(reply.header("etag"), plain.header("etag"), "{path}");
        let again = ask().header("if-none-match", reply.header("etag")).send().await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        let other = ask().header("if-none-match", plain.header("etag")).send().await;
        assert_eq!(other.status, 200, "{path}");
    }
}

/// Otherwise the prompt of a terminal stands behind the answer.
#[tokio::test]
async fn every_answer_in_json_ends_with_a_newline() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    post(address, "/v1/rooms/a", &json!(1)).send().await.expect(200);
    let stream = call("POST", address, "/v1/sessions/none").body("{\"type\":\"ping\"}");
    for call in [
        post(address, "/v1/rooms/a", &json!(2)),
        post(address, "/v1/publish", &json!([{"room": "a", "data": 3}])),
        get(address, "/v1/rooms"),
        get(address, "/v1/rooms/a"),
        get(address, "/v1/rooms/a/history"),
        get(address, "/v1/rooms/a/presence"),
        get(address, "/v1/rooms/a/poll?wait=0"),
        post(address, "/v1/poll", &json!({"rooms": {"a": null}})),
        get(address, "/v1/nothing"),
        call("PUT", address, "/v1/rooms/a"),
        get(address, "/v1/rooms/a").header("origin", "http://evil.example"),
        stream,
    ] {
        let reply = call.send().await;
        assert!(reply.text.ends_with("}\n") || reply.text.ends_with("]\n"), "{reply:?}");
        assert!(serde_json::from_str::<serde_json::Value>(&reply.text).is_ok(), "{reply:?}");
    }
}
