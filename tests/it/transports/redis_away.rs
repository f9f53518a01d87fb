//! While Redis is away streams stay open, new event streams get a time to come back, and polls are refused with such a time.

use fanfare_tests::http::Reply;
use fanfare_tests::transport::poll;
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Cluster, RoomRequest, Transport, TransportClient};
use serde_json::json;

use super::{Entry, publish};
use crate::fixtures::metric;
use crate::sentences::KEEP_ALL;

fn is_away(reply: &Reply) {
    assert_eq!(reply.problem(503), "backplane_unavailable");
    let after = reply.header("retry-after").parse::<u64>();
    assert!(after.is_ok_and(|after| (1..=15).contains(&after)), "{reply:?}");
}

pub(super) async fn while_redis_is_away_streams_stay_and_polls_are_refused(entry: Entry) {
    let mut setup = entry.start(Cluster::over_redis(1).config(KEEP_ALL)).await;
    let (address, admin) = (setup.target.address(0), setup.cluster.nodes[0].admin);
    let request = RoomRequest::of(&["a"]);
    let mut stay = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Stream] {
        stay.push(TransportClient::join(address, transport, &request).await);
    }
    let at = publish(address, "a", &json!(1)).await;
    let waiting = tokio::spawn(poll::get(address, &request.clone().since(at.as_str())).send());
    eventually("the poll waits", async || metric(admin, "fanfare_polls_waiting").await > 0.5).await;
    setup.cluster.redis().kill();
    eventually("the node notices", async || metric(admin, "fanfare_backplane_up").await < 0.5).await;
    is_away(&waiting.await.expect("a poll"));
    for query in ["", "wait=0", "wait=5&limit=3"] {
        is_away(&poll::get(address, &request.clone().since(at.as_str()).with(query)).send().await);
        is_away(&poll::get(address, &RoomRequest::of(&["never:seen"]).with(query)).send().await);
    }
    is_away(&poll::post(address, &poll::body(&[("a", Some(&at))], 1)).send().await);
    new_event_streams_get_a_time_to_come_back(address).await;
    // A new stream opens: the room that the node follows is joined at once, the other one waits.
    let mut late =
        TransportClient::open(address, Transport::Stream, &RoomRequest::of(&["a", "new"]).since(format!("{at}~")))
            .await;
    let joined = late.take("joined").await.json;
    assert_eq!((&joined["room"], &joined["resumed"]), (&json!("a"), &json!(true)), "{joined}");
    for client in &mut stay {
        let reply = client.ask(json!({"type": "publish", "room": "a", "data": "lost"})).await;
        assert_eq!((&reply["code"], &reply["retryable"]), (&json!("backplane_unavailable"), &json!(true)), "{reply}");
    }
    setup.cluster.redis().start_empty().await;
    assert_eq!(late.take("joined").await.json["room"], "new");
    stay.push(late);
    for client in &mut stay {
        assert_eq!(client.take("gap").await.json["from"], json!(at), "{}", client.transport.name());
    }
    let next = publish(address, "a", &json!(2)).await;
    for client in &mut stay {
        // The first message may have come before the gap.
        let mut message = client.message().await;
        if message["cursor"] == json!(at) {
            message = client.message().await;
        }
        assert_eq!(message["cursor"], json!(next), "{}", client.transport.name());
    }
    // The connections of a node to Redis come back one after the other.
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

/// Each stream gets a random time, so that clients do not come back all at once.
async fn new_event_streams_get_a_time_to_come_back(address: std::net::SocketAddr) {
    let mut retries = Vec::new();
    for _ in 0..5 {
        let mut events = EventStream::open(address, "/v1/rooms/a/sse", &[])
            .await
            .expect("an event stream: any other answer ends a browser's attempts for good");
        let (blocks, fault) = events.to_end().await;
        assert_eq!((blocks.len(), fault), (1, None), "{blocks:?}");
        retries.extend(blocks[0].retry_ms);
        assert_eq!(blocks[0].event, None);
    }
    assert!(retries.len() == 5 && retries.iter().all(|ms| (2_000..=15_000).contains(ms)), "{retries:?}");
    retries.dedup();
    assert!(retries.len() > 1, "{retries:?}");
}
