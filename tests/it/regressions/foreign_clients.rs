//! Clients, proxies and health checks that are not ours and that the gateway did not understand.

use std::net::SocketAddr;

use fanfare_tests::http::{self, call};
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::wait::within;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixtures::{UnfinishedPublish, one_node, publish_numbers, split};

/// Sends these bytes and returns all that comes back until the connection ends.
async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut connection = TcpStream::connect(address).await.expect("a listener");
    connection.write_all(bytes.as_bytes()).await.expect("the listener takes bytes");
    let mut text = String::new();
    within("the end of the reply", connection.read_to_string(&mut text)).await.expect("a reply");
    text
}

/// event-source-polyfill and others write the id of the last event into the URL, because a header of their own would need
/// a preflight.
#[tokio::test]
async fn an_event_source_in_javascript_lost_what_it_missed() {
    let cluster = one_node().await;
    let last = publish_numbers(&cluster, "a", 0, 5).await;
    let (epoch, _) = split(&json!(last));
    for name in ["lastEventId", "lastEventID", "evs_last_event_id"] {
        let path = format!("/v1/rooms/a/sse?since={epoch}.4&{name}={epoch}.2");
        let mut events = EventStream::open(cluster.address(0), &path, &[]).await.expect("a stream");
        let mut ids = Vec::new();
        while ids.len() < 3 {
            let block = events.block().await;
            if block.event.is_some_and(|event| event.kind == "message") {
                ids.push(block.id);
            }
        }
        assert_eq!(ids, [3, 4, 5].map(|offset| format!("{epoch}.{offset}")), "{name}");
    }
    // The header, which browsers send, is the newer one.
    let path = format!("/v1/rooms/a/sse?lastEventId={epoch}.1");
    let id = format!("{epoch}.4");
    let headers = [("Last-Event-ID", id.as_str())];
    let mut events = EventStream::open(cluster.address(0), &path, &headers).await.expect("a stream");
    let first = loop {
        let block = events.block().await;
        if block.event.is_some_and(|event| event.kind == "message") {
            break block.id;
        }
    };
    assert_eq!(first, format!("{epoch}.5"));
}

/// Pages with Sentry or OpenTelemetry add headers to every request, so every request failed at its preflight.
#[tokio::test]
async fn preflights_for_the_headers_of_tracing_tools_were_refused() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let origin = format!("http://{address}");
    let asked = "baggage,content-type,sentry-trace,traceparent,x-something-new";
    let reply = call("OPTIONS", address, "/v1/rooms/a")
        .header("Origin", &origin)
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", asked)
        .send()
        .await;
    assert_eq!((reply.status, reply.header("access-control-allow-headers")), (204, asked));
    assert_eq!(reply.header("access-control-allow-origin"), origin);
    let other = call("OPTIONS", address, "/v1/rooms/a")
        .header("Origin", "http://elsewhere.example")
        .header("Access-Control-Request-Headers", asked)
        .send()
        .await;
    assert_eq!((other.status, other.header("access-control-allow-headers")), (403, ""));
}

/// `option httpchk` of HAProxy sends `OPTIONS / HTTP/1.0` and takes every status from 200 to 399 for well.
#[tokio::test]
async fn a_node_was_never_well_for_haproxys_plain_check() {
    let mut cluster = one_node().await;
    let (listen, admin) = (cluster.nodes[0].listen, cluster.nodes[0].admin);
    for (address, well) in [(listen, "HTTP/1.0 204 "), (admin, "HTTP/1.0 200 ")] {
        let reply = raw(address, "OPTIONS / HTTP/1.0\r\n\r\n").await;
        assert!(reply.starts_with(well), "{reply}");
    }
    let unfinished = UnfinishedPublish::begin(listen).await;
    cluster.nodes[0].terminate();
    fanfare_tests::wait::eventually("both checks say that the node drains", async || {
        let replies = [raw(listen, "OPTIONS / HTTP/1.0\r\n\r\n").await, raw(admin, "OPTIONS / HTTP/1.0\r\n\r\n").await];
        replies.iter().all(|reply| reply.starts_with("HTTP/1.0 503 "))
    })
    .await;
    unfinished.finish().await;
    cluster.nodes[0].exit(fanfare_tests::wait::patience()).await;
}

/// RFC 9112 section 3.2: a request of HTTP/1.1 without `Host`, or with several, is answered with 400.
#[tokio::test]
async fn requests_without_a_valid_host_were_served() {
    let cluster = one_node().await;
    for (address, path) in [(cluster.nodes[0].listen, "/v1/rooms/a"), (cluster.nodes[0].admin, "/livez")] {
        for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a b\r\n", "Host: a:+80\r\n", "Host: [zz]\r\n"] {
            let reply = raw(address, &format!("GET {path} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")).await;
            assert!(reply.starts_with("HTTP/1.1 400 "), "{hosts:?}: {reply}");
        }
        let reply = raw(address, &format!("GET {path} HTTP/1.1\r\nHost: a%41\r\nConnection: close\r\n\r\n")).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        let reply = raw(address, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert!(reply.starts_with("HTTP/1.0 200 "), "{reply}");
    }
}

/// Clients with a pool of connections sent requests over those that the gateway was about to close.
#[tokio::test]
async fn an_idle_connection_was_cut_without_notice() {
    let cluster = one_node().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let foreign = "http://elsewhere.example";
    for (status, request) in [
        (200, http::get(address, "/v1/rooms/a")),
        (200, http::get(address, "/v1/rooms/a/poll?wait=0")),
        (204, call("OPTIONS", address, "/v1/rooms/a")),
        (400, http::get(address, "/v1/rooms/a").header("Host", "second")),
        (403, http::get(address, "/v1/rooms/a").header("Origin", foreign)),
        (403, call("OPTIONS", address, "/").header("Origin", foreign).header("Access-Control-Request-Method", "POST")),
        (200, http::get(admin, "/readyz")),
        (400, http::get(admin, "/readyz").header("Host", "second")),
        (404, http::get(admin, "/nothing")),
    ] {
        let what = format!("{request:?}");
        let reply = request.send().await;
        assert_eq!((reply.status, reply.header("keep-alive")), (status, "timeout=5"), "{what}");
    }
    let closed = raw(address, "GET /v1/rooms/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(closed.starts_with("HTTP/1.1 200 "), "{closed}");
}

/// It was a space in the API's queries, and a plus in those of the transports and in paths.
#[tokio::test]
async fn a_plus_in_a_query_meant_two_things() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let mut member = fanfare_tests::Client::open(address, "/ws?room=c+d").await;
    assert_eq!(member.take("joined").await.json["room"], "c+d");
    for prefix in ["c+", "c%2B", "c%2b"] {
        let rooms = http::get(address, &format!("/v1/rooms?limit=10&prefix={prefix}")).send().await.expect(200);
        assert_eq!(rooms["rooms"][0], "c+d", "{prefix}: {rooms}");
    }
}
