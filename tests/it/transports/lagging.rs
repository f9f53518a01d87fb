//! A node that gets messages later than the others. A client comes to it with a cursor that the node has not reached yet: the
//! client gets no gap, and no message that it has already had.

use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::poll;
use fanfare_tests::{Cluster, RoomRequest, Transport, TransportClient};
use serde_json::json;

use super::publish;
use crate::sentences::KEEP_ALL;

/// Longer than a client takes from one node to the next.
const LAG: Fault = Fault::Delay { least: Duration::from_millis(250), jitter: Duration::ZERO };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_ahead_of_the_node_is_no_gap_on_any_transport() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![redis.url(), format!("redis://{}", proxy.address)];
    let cluster = Cluster::over_addresses(2, addresses).config(KEEP_ALL).start().await;
    let (ahead, behind) = (cluster.address(0), cluster.address(1));
    // Both nodes follow the room, so that the late one has a head of its own.
    let _members = [
        TransportClient::join(ahead, Transport::WebSocket, &RoomRequest::of(&["a"])).await,
        TransportClient::join(behind, Transport::WebSocket, &RoomRequest::of(&["a"])).await,
    ];
    publish(ahead, "a", &json!("first")).await;
    proxy.set(LAG);
    for transport in Transport::ALL {
        let at = publish(ahead, "a", &json!(transport.name())).await;
        let request = RoomRequest::of(&["a"]).since(at.as_str());
        let answer = poll::once(behind, &request).await;
        let answered = (answer.cursor(), answer.messages().count(), answer.gap.is_none());
        assert_eq!(answered, (at.as_str(), 0, true), "a poll never goes back");
        let mut client = TransportClient::open(behind, transport, &request).await;
        let next = publish(ahead, "a", &json!("next")).await;
        let joined = client.take("joined").await.json;
        let resumed = (&joined["resumed"], &joined["cursor"]);
        assert_eq!(resumed, (&json!(true), &json!(at)), "{}: {joined}", transport.name());
        assert_eq!(client.message().await["cursor"], json!(next), "{}: no message comes twice", transport.name());
        assert!(client.received().is_empty(), "{}", transport.name());
    }
}
