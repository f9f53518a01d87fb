//! Web pages of other origins on every transport: refused, or answered with the headers that let them read.

use fanfare_tests::transport::ndjson::NdjsonStream;
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::{RoomRequest, Transport, http};

use crate::fixtures::one_node_with;

const ORIGIN: &str = "https://app.example.com";

#[tokio::test]
async fn an_unlisted_origin_is_refused_on_every_transport() {
    let cluster = one_node_with(&format!("[auth]\norigins = [\"{ORIGIN}\"]\n")).await;
    for transport in [Transport::Sse, Transport::Stream, Transport::LongPoll] {
        let path = RoomRequest::of(&["a"]).path(transport, None);
        for origin in ["https://evil.example", "https://app.example.com:444", "http://app.example.com", "null"] {
            let reply = http::get(cluster.address(0), &path).header("origin", origin).send().await;
            assert_eq!(reply.problem(403), "forbidden", "{} {origin}", transport.name());
        }
    }
}

#[tokio::test]
async fn a_listed_origin_may_read_every_transport() {
    let cluster = one_node_with(&format!("[auth]\norigins = [\"{ORIGIN}\"]\n")).await;
    let address = cluster.address(0);
    let header = [("Origin", ORIGIN)];
    let path = |transport| RoomRequest::of(&["a"]).path(transport, None);
    let events = EventStream::open(address, &path(Transport::Sse), &header).await.expect("a stream").head;
    let lines = NdjsonStream::open(address, &path(Transport::Stream), &header).await.expect("a stream").head;
    let poll = http::get(address, &path(Transport::LongPoll)).header("origin", ORIGIN).send().await;
    let short = http::get(address, "/v1/rooms/a/poll?wait=0").header("origin", ORIGIN).send().await;
    for (transport, headers) in
        [("SSE", &events.headers), ("stream", &lines.headers), ("long poll", &poll.headers), ("short", &short.headers)]
    {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(header("access-control-allow-origin"), ORIGIN, "{transport}");
        let vary = headers.get_all("vary").iter().filter_map(|value| value.to_str().ok());
        assert!(
            vary.flat_map(|value| value.split(", ")).any(|name| name.eq_ignore_ascii_case("origin")),
            "{transport}"
        );
    }
    let refused = http::get(address, "/v1/rooms/$a/sse").header("origin", ORIGIN).send().await;
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (400, ORIGIN),
        "the page can read the reason as well"
    );
}

#[tokio::test]
async fn a_preflight_allows_the_headers_that_browsers_send_on_reconnect() {
    let cluster = one_node_with(&format!("[auth]\norigins = [\"{ORIGIN}\"]\n")).await;
    for (path, wanted) in [
        ("/v1/rooms/a/sse", "last-event-id"),
        ("/v1/rooms/a/poll", "if-none-match"),
        ("/v1/sessions/x", "content-type"),
    ] {
        let preflight = http::call("OPTIONS", cluster.address(0), path)
            .header("origin", ORIGIN)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", wanted);
        let reply = preflight.send().await;
        assert_eq!(reply.header("access-control-allow-origin"), ORIGIN, "{path}: {reply:?}");
        let allowed = reply.header("access-control-allow-headers").to_ascii_lowercase();
        assert!(allowed.contains(wanted), "{path}: {allowed}");
    }
}
