//! What remains of clients: metrics by transport, and nothing else once they are gone.

use fanfare_tests::redis::Redis;
use fanfare_tests::transport::poll;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient, http, prometheus};
use serde_json::json;

use super::{on_all, publish};
use crate::fixtures::{metric, one_node};

/// The name of a transport in labels.
fn label(transport: Transport) -> &'static str {
    match transport {
        Transport::WebSocket => "ws",
        Transport::Sse => "sse",
        Transport::Stream => "stream",
        Transport::LongPoll | Transport::ShortPoll => "poll",
    }
}

#[tokio::test]
async fn metrics_count_sessions_and_messages_by_transport() {
    let cluster = one_node().await;
    let target = fanfare_tests::Target::direct(&cluster);
    let mut clients = on_all(&target, &RoomRequest::of(&["a"])).await;
    for n in 0..3 {
        publish(cluster.address(0), "a", &json!(n)).await;
    }
    for client in &mut clients {
        assert_eq!(client.data(3).await, [json!(0), json!(1), json!(2)]);
    }
    for client in clients.iter_mut().filter(|client| !client.transport.polls()) {
        client.ask(json!({"type": "publish", "room": "other", "data": 1})).await;
    }
    let text = http::get(cluster.nodes[0].admin, "/metrics").send().await.text;
    let scrape = prometheus::parse(&text).expect("a valid scrape");
    let value = |name: &str, label: &str| {
        let wanted = format!("{name}{{{label}}}");
        let found = scrape.series(name).find(|(series, _)| *series == wanted);
        found.unwrap_or_else(|| panic!("no {wanted}: {:?}", scrape.series(name).collect::<Vec<_>>())).1
    };
    for transport in Transport::ALL {
        let label = label(transport);
        let delivered = value("fanfare_messages_delivered_total", &format!("transport=\"{label}\""));
        assert_eq!(delivered, if transport.polls() { 6.0 } else { 3.0 }, "{label}");
        if !transport.polls() {
            assert_eq!(value("fanfare_sessions", &format!("protocol=\"native\",transport=\"{label}\"")), 1.0);
            assert_eq!(value("fanfare_sessions_opened_total", &format!("transport=\"{label}\"")), 1.0);
            assert_eq!(value("fanfare_messages_published_total", &format!("source=\"{label}\"")), 1.0);
        }
    }
    assert_eq!(value("fanfare_messages_published_total", "source=\"http\""), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnected_clients_leave_no_session_member_poll_or_subscription() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let (mut open, mut waiting) = (Vec::new(), Vec::new());
    for n in 0..20 {
        for transport in [Transport::WebSocket, Transport::Sse, Transport::Stream] {
            let mut client = TransportClient::join(address, transport, &RoomRequest::of(&[&format!("room:{n}")])).await;
            client.ask(json!({"type": "join", "room": format!("later:{n}")})).await;
            open.push(client);
        }
        let polled = format!("polled:{n}");
        let first = poll::once(address, &RoomRequest::of(&[&polled])).await;
        let request = RoomRequest::of(&[&polled]).since(first.cursor()).with("wait=55");
        waiting.push(tokio::spawn(async move {
            TransportClient::open(address, Transport::LongPoll, &request).await.try_next().await
        }));
    }
    eventually("the polls wait", async || metric(admin, "fanfare_polls_waiting").await > 19.5).await;
    assert_eq!(followed(cluster.redis(), &["room:", "later:", "polled:"]).await, 60);
    drop(open);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for name in ["fanfare_sessions", "fanfare_members", "fanfare_polls_waiting"] {
        eventually(&format!("{name} is 0"), async || metric(admin, name).await < 0.5).await;
    }
    eventually("no room is followed", async || followed(cluster.redis(), &["room:", "later:"]).await == 0).await;
}

/// The number of rooms with these prefixes that a node follows.
pub(super) async fn followed(redis: &Redis, prefixes: &[&str]) -> usize {
    let channels = redis.values("PUBSUB CHANNELS *").await;
    channels.iter().filter(|channel| prefixes.iter().any(|prefix| channel.contains(&format!(":c:{prefix}")))).count()
}

#[tokio::test]
async fn an_address_cannot_open_more_connections_than_its_limit() {
    let cluster = Cluster::embedded().config("[limits]\nconnections_per_ip = 2\n").start().await;
    let address = cluster.address(0);
    let first = TransportClient::join(address, Transport::Sse, &RoomRequest::of(&["a"])).await;
    let start = poll::once(address, &RoomRequest::of(&["a"])).await;
    let parked = tokio::spawn(poll::get(address, &RoomRequest::of(&["a"]).since(start.cursor())).send());
    eventually("the poll waits", async || metric(cluster.nodes[0].admin, "fanfare_polls_waiting").await > 0.5).await;
    let mut events =
        fanfare_tests::transport::sse::EventStream::open(address, "/v1/rooms/a/sse", &[]).await.expect("200");
    let (blocks, fault) = events.to_end().await;
    assert!(blocks.len() == 1 && blocks[0].event.is_none() && fault.is_none(), "{blocks:?}");
    assert!(blocks[0].retry_ms.is_some_and(|ms| (2_000..=15_000).contains(&ms)), "{blocks:?}");
    for path in ["/v1/rooms/a/stream".to_owned(), format!("/v1/rooms/a/poll?since={}", start.cursor())] {
        let reply = http::get(address, &path).send().await;
        assert_eq!(reply.problem(429), "rate_limited", "{path}");
        assert!(!reply.header("retry-after").is_empty(), "{reply:?}");
    }
    publish(address, "a", &json!(1)).await;
    assert_eq!(poll::served(&parked.await.expect("a poll")).data(), [json!(1)]);
    Client::connect(address).await.close().await;
    drop(first);
    eventually("a connection is free again", async || Client::try_open(address, "/ws", &[]).await.is_ok()).await;
    eventually("both connections are free again", async || {
        let both = [Client::try_open(address, "/ws", &[]).await, Client::try_open(address, "/ws", &[]).await];
        both.iter().all(Result::is_ok)
    })
    .await;
}
