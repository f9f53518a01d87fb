//! A client that does not read its stream delays no one else: it is closed, and resumes without a loss. `protocol::limits` has
//! the same test for a WebSocket.

use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient};
use serde_json::json;

use super::Entry;
use crate::fixtures::{metric, split};
use crate::sentences::KEEP_ALL;

async fn a_stream_that_is_not_read_is_closed_and_resumes_without_a_loss(entry: Entry, transport: Transport) {
    // 12 MB: far more than the outbox (256 KiB) and what the kernel holds for an unread socket.
    const TOTAL: u64 = 200;
    let setup = entry.start(Cluster::embedded().config(KEEP_ALL)).await;
    let (address, admin) = (setup.target.address(0), setup.cluster.nodes[0].admin);
    let request = RoomRequest::of(&["a"]);
    let mut slow = TransportClient::join(address, transport, &request).await;
    let (epoch, mut at) = split(&json!(slow.cursor()));
    let mut others = [
        TransportClient::join(address, transport, &request).await,
        TransportClient::join(address, Transport::WebSocket, &request).await,
    ];
    let mut publisher = Client::connect(address).await;
    let large = json!("x".repeat(60_000));
    for n in 1..=TOTAL {
        publisher.publish("a", large.clone()).await;
        for other in &mut others {
            assert_eq!(split(&other.message().await["cursor"]).1, n, "other members are served without delay");
        }
    }
    eventually("the slow consumer is closed", async || metric(admin, "fanfare_slow_consumers_total").await > 0.5).await;
    let ended = slow.ended().await;
    assert!(matches!(ended.code, Some(4508) | None), "the code comes if the socket still takes it: {ended:?}");
    assert_ne!(ended.reconnect, Some(false), "{ended:?}");
    let since = slow.cursor();
    for frame in slow.received().iter().filter(|frame| frame.kind() == "message") {
        at += 1;
        assert_eq!(split(&frame.json["cursor"]), (epoch.clone(), at));
    }
    assert!(at < TOTAL, "the outbox was never full: the kernel held everything");
    assert_eq!(since, format!("{epoch}.{at}"));
    let mut back = TransportClient::open(address, transport, &request.since(since)).await;
    assert_eq!(back.take("joined").await.json["resumed"], true);
    while at < TOTAL {
        at += 1;
        assert_eq!(split(&back.message().await["cursor"]), (epoch.clone(), at));
    }
    assert_eq!(metric(admin, "fanfare_slow_consumers_total").await, 1.0, "no other client was closed");
}

pub(super) async fn an_event_stream_that_is_not_read_is_closed_and_resumes_without_a_loss(entry: Entry) {
    a_stream_that_is_not_read_is_closed_and_resumes_without_a_loss(entry, Transport::Sse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_lines_that_is_not_read_is_closed_and_resumes_without_a_loss() {
    a_stream_that_is_not_read_is_closed_and_resumes_without_a_loss(Entry::Nodes, Transport::Stream).await;
}
