//! Which web pages may call the gateway: CORS, and the header `Origin` of the WebSocket upgrade.

use fanfare_tests::Client;
use fanfare_tests::http::{call, get};

use crate::fixtures::{one_node, one_node_with};

const LISTED: &str = "[auth]\norigins = [\"https://app.example.com\"]\n";

#[tokio::test]
async fn a_listed_origin_may_call_and_read() {
    let cluster = one_node_with(LISTED).await;
    let reply = get(cluster.address(0), "/v1/rooms/a").header("origin", "https://app.example.com").send().await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "https://app.example.com"));
    assert!(reply.header("vary").to_ascii_lowercase().contains("origin"), "{:?}", reply.headers);
    let headers = [("origin", "https://app.example.com")];
    Client::try_open(cluster.address(0), "/ws", &headers).await.expect("a listed origin can connect");
}

#[tokio::test]
async fn a_preflight_is_answered_for_listed_origins_only() {
    let cluster = one_node_with(LISTED).await;
    let preflight = |origin: &str| {
        call("OPTIONS", cluster.address(0), "/v1/rooms/a")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,idempotency-key,authorization")
    };
    let reply = preflight("https://app.example.com").send().await;
    assert!(matches!(reply.status, 200 | 204), "{}", reply.status);
    assert_eq!(reply.header("access-control-allow-origin"), "https://app.example.com");
    assert!(reply.header("access-control-allow-methods").contains("POST"), "{:?}", reply.headers);
    let allowed = reply.header("access-control-allow-headers").to_ascii_lowercase();
    for header in ["content-type", "idempotency-key", "authorization"] {
        assert!(allowed.contains(header), "{allowed}");
    }
    let refused = preflight("https://evil.example").send().await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn an_origin_that_is_not_listed_is_refused_everywhere() {
    let cluster = one_node_with(LISTED).await;
    for origin in ["https://evil.example", "http://app.example.com", "https://app.example.com:8443", "null"] {
        let reply = get(cluster.address(0), "/v1/rooms/a").header("origin", origin).send().await;
        assert_eq!(reply.problem(403), "forbidden", "{origin}");
        assert_eq!(reply.header("access-control-allow-origin"), "", "{origin}");
        let upgrade = Client::try_open(cluster.address(0), "/ws", &[("origin", origin)]).await;
        assert!(upgrade.as_ref().is_err_and(|refused| refused.status() == Some(403)), "{origin}: {upgrade:?}");
    }
}

#[tokio::test]
async fn without_a_list_the_same_origin_is_allowed_whatever_the_scheme() {
    let cluster = one_node().await;
    for scheme in ["http", "https"] {
        let origin = format!("{scheme}://{}", cluster.address(0));
        let reply = get(cluster.address(0), "/v1/rooms/a").header("origin", &origin).send().await;
        assert_eq!(reply.status, 200, "{origin}: {}", reply.text);
        Client::try_open(cluster.address(0), "/ws", &[("origin", &origin)]).await.expect("the same origin can connect");
    }
    let upgrade = Client::try_open(cluster.address(0), "/ws", &[("origin", "http://other.example")]).await;
    assert!(upgrade.as_ref().is_err_and(|refused| refused.status() == Some(403)), "{upgrade:?}");
}

#[tokio::test]
async fn a_request_without_an_origin_is_allowed() {
    let cluster = one_node_with(LISTED).await;
    assert_eq!(get(cluster.address(0), "/v1/rooms/a").send().await.status, 200);
    Client::connect(cluster.address(0)).await;
}
