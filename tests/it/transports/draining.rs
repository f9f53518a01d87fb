//! A draining node on each transport: the reconnect time that clients get, and resumes elsewhere without a loss.

use std::time::Duration;

use fanfare_tests::crowd::{Crowd, rooms};
use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{TransportChoice, settle_within, stop_all};
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::transport::{Refused, poll};
use fanfare_tests::wait::{eventually, patience, patient};
use fanfare_tests::{Cluster, RoomRequest, Target, Transport, TransportClient, http};
use serde_json::json;

use super::{Entry, publish};
use crate::fixtures::{UnfinishedPublish, metric};
use crate::sentences::{KEEP_ALL, judge};

/// One of two nodes drains under load, and members on every transport resume at the other.
pub(super) async fn a_drain_loses_nothing_on_any_transport(entry: Entry) {
    const TOTAL: u64 = 1_500;
    let mut setup = entry.start(Cluster::over_redis(2).config(KEEP_ALL)).await;
    let rooms = rooms(5);
    let target = setup.target.clone();
    let mut members = Vec::new();
    for transport in Transport::ALL {
        let crowd = Crowd { transports: TransportChoice::Only(transport), ..Crowd::of(&target, &rooms) };
        members.extend(crowd.members(6).await);
    }
    let pace = Duration::from_millis(4);
    let load = Load { target: target.clone(), publishers: 2, rooms: rooms.clone(), total: TOTAL, window: 4, pace };
    let running = load.start();
    running.reaches(100).await;
    setup.cluster.nodes[0].terminate();
    let status = setup.cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", setup.cluster.nodes[0].log());
    let published = running.finish().await;
    // A refused event stream comes back within 15 s.
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published as u64 == TOTAL, "{verdict}");
    let moved = reports.iter().filter(|report| report.transports.len() > 1).count();
    assert!(moved >= 3, "some members were on the drained node: {moved}");
}

#[tokio::test]
async fn streams_of_a_draining_node_get_a_reconnect_time_and_a_close() {
    let cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let mut clients = Vec::new();
    for transport in Transport::ONE_WAY {
        clients.push(TransportClient::join(target.address(0), transport, &RoomRequest::of(&["a"])).await);
    }
    let mut events = EventStream::open(target.address(0), "/v1/rooms/a/sse", &[]).await.expect("a stream");
    cluster.nodes[0].terminate();
    for client in &mut clients {
        let name = client.transport.name();
        let reconnect = client.take("reconnect").await.json;
        assert_eq!(reconnect["reason"], "draining", "{name}: {reconnect}");
        assert!(reconnect["after_ms"].is_u64(), "{name}: {reconnect}");
        let close = client.take("close").await.json;
        assert_eq!((&close["code"], &close["reconnect"]), (&json!(1012), &json!(true)), "{name}: {close}");
        assert!(close["after_ms"].is_u64(), "{name}: {close}");
        let ended = client.ended().await;
        assert_eq!((ended.code, ended.reason.as_str()), (Some(1012), ""), "{name}: nothing comes after it");
        assert!(client.received().is_empty(), "{name}");
    }
    let (blocks, fault) = events.to_end().await;
    assert_eq!(fault, None);
    let reconnect = blocks.iter().find(|block| block.event.as_ref().is_some_and(|event| event.kind == "reconnect"));
    let reconnect = reconnect.expect("a browser gets the time in a `retry` field as well");
    let data: serde_json::Value = serde_json::from_str(&reconnect.event.as_ref().unwrap().data).unwrap();
    // A second more, since a browser has no back-off of its own.
    assert_eq!(reconnect.retry_ms, data["after_ms"].as_u64().map(|ms| ms + 1_000), "{reconnect:?}");
    let last = blocks.last().and_then(|block| block.event.as_ref()).expect("a last event");
    assert_eq!(last.kind, "close", "{blocks:?}");
}

#[tokio::test]
async fn a_draining_node_answers_waiting_polls_early() {
    let cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let at = publish(cluster.address(1), "a", &json!(1)).await;
    let request = RoomRequest::of(&["a"]).since(at.as_str()).with("wait=30");
    let waiting = tokio::spawn(poll::get(cluster.address(0), &request).send());
    eventually("the poll waits", async || metric(cluster.nodes[0].admin, "fanfare_polls_waiting").await > 0.5).await;
    cluster.nodes[0].terminate();
    let answer = poll::served(&waiting.await.expect("a poll"));
    assert_eq!((answer.messages().count(), answer.cursor(), answer.more), (0, at.as_str(), false));
    publish(cluster.address(1), "a", &json!(2)).await;
    assert_eq!(poll::once(cluster.address(1), &RoomRequest::of(&["a"]).since(at)).await.data(), [json!(2)]);
}

#[tokio::test]
async fn a_draining_node_refuses_new_clients_in_the_terms_of_each_transport() {
    let cluster = Cluster::over_redis(1).config(KEEP_ALL).drain(30).start().await;
    let address = cluster.address(0);
    // The drain lasts until this publish is finished.
    let _unfinished = UnfinishedPublish::begin(address).await;
    cluster.nodes[0].terminate();
    eventually("the node drains", async || http::get(cluster.nodes[0].admin, "/readyz").send().await.status != 200)
        .await;
    let mut events = EventStream::open(address, "/v1/rooms/a/sse", &[])
        .await
        .expect("an event stream: any other answer ends a browser's attempts for good");
    let (blocks, fault) = events.to_end().await;
    assert_eq!((blocks.len(), fault), (1, None), "{blocks:?}");
    let retry_ms = blocks[0].retry_ms.expect("when to come back");
    assert!((2_000..=15_000).contains(&retry_ms), "{retry_ms}");
    assert_eq!(String::from_utf8_lossy(&blocks[0].raw), format!("retry:{retry_ms}\n\n"));
    for transport in [Transport::Stream, Transport::LongPoll, Transport::ShortPoll] {
        let query = if transport == Transport::ShortPoll { "wait=0" } else { "" };
        let reply = http::get(address, &RoomRequest::of(&["a"]).with(query).path(transport, None)).send().await;
        assert_eq!(reply.problem(503), "draining", "{}", transport.name());
        assert!(reply.header("retry-after").parse::<u64>().is_ok(), "{}: {reply:?}", transport.name());
    }
    match TransportClient::try_open(address, Transport::WebSocket, &RoomRequest::of(&["a"])).await {
        Err(Refused::Reply(reply)) => assert_eq!(reply.status, 503),
        other => panic!("{other:?}"),
    }
    http::post(address, "/v1/rooms/a", &json!(1)).send().await.expect(200);
}
