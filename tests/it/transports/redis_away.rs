//! While Redis is away streams stay open, new ones are told to come back in words that they understand, and polls get an
//! error that says when.

use std::time::{Duration, Instant};

use fanfare_tests::http::Reply;
use fanfare_tests::transport::poll;
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::wait::{eventually, patient};
use fanfare_tests::{Cluster, RoomRequest, Transport, TransportClient};
use serde_json::json;

use super::{Place, metric, publish};
use crate::sentences::KEEP_ALL;

/// Publishers and everybody else are told so within a second; and a busy machine.
const TOLD: Duration = Duration::from_secs(2);

fn is_away(reply: &Reply) {
    assert_eq!(reply.problem(503), "backplane_unavailable");
    let after = reply.header("retry-after").parse::<u64>();
    assert!(after.is_ok_and(|after| (1..=15).contains(&after)), "{reply:?}");
}

pub(super) async fn streams_stay_and_polls_are_told_while_redis_is_away(place: Place) {
    let mut stage = place.stage(Cluster::over_redis(1).config(KEEP_ALL)).await;
    let (address, admin) = (stage.target.address(0), stage.cluster.nodes[0].admin);
    let request = RoomRequest::of(&["a"]);
    let mut stay = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Stream] {
        stay.push(TransportClient::join(address, transport, &request).await);
    }
    let at = publish(address, "a", &json!(1)).await;
    let waiting = tokio::spawn(poll::get(address, &request.clone().since(at.as_str())).send());
    eventually("the poll waits", async || metric(admin, "fanfare_polls_waiting").await > 0.5).await;
    stage.cluster.redis().kill();
    eventually("it is noticed", async || metric(admin, "fanfare_backplane_up").await < 0.5).await;
    is_away(&waiting.await.expect("a poll"));
    for query in ["", "wait=0", "wait=5&limit=3"] {
        is_away(&poll::get(address, &request.clone().since(at.as_str()).with(query)).send().await);
        is_away(&poll::get(address, &RoomRequest::of(&["never:seen"]).with(query)).send().await);
    }
    is_away(&poll::post(address, &poll::body(&[("a", Some(&at))], 1)).send().await);
    new_event_streams_are_told_to_come_back(address).await;
    // A stream opens; what the node knows of is joined, and the rest waits.
    let mut late =
        TransportClient::open(address, Transport::Stream, &RoomRequest::of(&["a", "new"]).since(format!("{at}~")))
            .await;
    let joined = late.take("joined").await.json;
    assert_eq!((&joined["room"], &joined["resumed"]), (&json!("a"), &json!(true)), "{joined}");
    for client in &mut stay {
        let asked = Instant::now();
        let reply = client.ask(json!({"type": "publish", "room": "a", "data": "lost"})).await;
        assert_eq!((&reply["code"], &reply["retryable"]), (&json!("backplane_unavailable"), &json!(true)), "{reply}");
        assert!(asked.elapsed() < patient(TOLD), "{:?}", asked.elapsed());
    }
    stage.cluster.redis().start_empty().await;
    assert_eq!(late.take("joined").await.json["room"], "new");
    stay.push(late);
    for client in &mut stay {
        assert_eq!(client.take("gap").await.json["from"], json!(at), "{}", client.transport.name());
    }
    let next = publish(address, "a", &json!(2)).await;
    for client in &mut stay {
        // The first one may have come before the gap.
        let mut message = client.message().await;
        if message["cursor"] == json!(at) {
            message = client.message().await;
        }
        assert_eq!(message["cursor"], json!(next), "{}", client.transport.name());
    }
    // Each of a node's connections to Redis comes back in its own time.
    let request = request.since(at).with("wait=0");
    let mut reply = poll::get(address, &request).send().await;
    eventually("polls are served again", async || {
        reply = poll::get(address, &request).send().await;
        reply.status == 200
    })
    .await;
    let answer = poll::served(&reply);
    assert_eq!((answer.data(), answer.gap.map(|gap| gap["a"].missed)), (vec![json!(2)], Some(None)));
}

/// Each in another moment: the random times differ.
async fn new_event_streams_are_told_to_come_back(address: std::net::SocketAddr) {
    let mut retries = Vec::new();
    for _ in 0..5 {
        let mut events =
            EventStream::open(address, "/v1/rooms/a/sse", &[]).await.expect("never a status that ends a browser");
        let (blocks, fault) = events.to_end().await;
        assert_eq!((blocks.len(), fault), (1, None), "{blocks:?}");
        retries.extend(blocks[0].retry_ms);
        assert_eq!(blocks[0].event, None);
    }
    assert!(retries.len() == 5 && retries.iter().all(|ms| (2_000..=15_000).contains(ms)), "{retries:?}");
    retries.dedup();
    assert!(retries.len() > 1, "{retries:?}");
}
