//! A node that hears later than others: a client comes to it from a place that it does not know yet. That is no gap, and
//! what the client has had already does not come again.

use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::transport::poll;
use fanfare_tests::{Cluster, RoomRequest, Transport, TransportClient};
use serde_json::json;

use super::publish;
use crate::sentences::KEEP_ALL;

/// How late: a poller that goes from node to node is faster.
const LAG: Fault = Fault::Delay { least: Duration::from_millis(250), jitter: Duration::ZERO };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_the_node_does_not_know_yet_is_no_gap_on_any_transport() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![redis.url(), format!("redis://{}", proxy.address)];
    let cluster = Cluster::over_addresses(2, addresses).config(KEEP_ALL).start().await;
    let (ahead, behind) = (cluster.address(0), cluster.address(1));
    // The room is followed at both, so that the one behind has an opinion.
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
        let told = (answer.cursor(), answer.messages().count(), answer.gap.is_none());
        assert_eq!(told, (at.as_str(), 0, true), "a poll never goes back");
        let mut client = TransportClient::open(behind, transport, &request).await;
        let next = publish(ahead, "a", &json!("next")).await;
        let joined = client.take("joined").await.json;
        let resumed = (&joined["resumed"], &joined["cursor"]);
        assert_eq!(resumed, (&json!(true), &json!(at)), "{}: {joined}", transport.name());
        assert_eq!(client.message().await["cursor"], json!(next), "{}: nothing comes twice", transport.name());
        assert!(client.received().is_empty(), "{}", transport.name());
    }
}
