//! What each transport is told when its node goes, and what is not lost by it.

use std::time::Duration;

use fanfare_tests::crowd::{Crowd, rooms};
use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{TransportChoice, settle_within, stop_all};
use fanfare_tests::transport::sse::EventStream;
use fanfare_tests::transport::{Refused, poll};
use fanfare_tests::wait::{eventually, patient, within_time};
use fanfare_tests::{Client, Cluster, RoomRequest, Target, Transport, TransportClient, http};
use serde_json::json;

use super::{Place, publish};
use crate::sentences::{KEEP_ALL, judge};

/// One of two nodes is drained under load, and members of every transport come back to the other.
pub(super) async fn a_drain_loses_nothing_on_any_transport(place: Place) {
    const TOTAL: u64 = 1_500;
    let mut stage = place.stage(Cluster::over_redis(2).config(KEEP_ALL)).await;
    let rooms = rooms(5);
    let target = stage.target.clone();
    let mut members = Vec::new();
    for transport in Transport::ALL {
        let crowd = Crowd { transports: TransportChoice::Only(transport), ..Crowd::of(&target, &rooms) };
        members.extend(crowd.members(6).await);
    }
    let pace = Duration::from_millis(4);
    let load = Load { target: target.clone(), publishers: 2, rooms: rooms.clone(), total: TOTAL, window: 4, pace };
    let running = load.start();
    eventually("the load is under way", async || running.acknowledged() > 100).await;
    stage.cluster.nodes[0].terminate();
    let status = stage.cluster.nodes[0].exit(patient(Duration::from_secs(4))).await;
    assert_eq!(status.code(), Some(0), "{}", stage.cluster.nodes[0].log());
    let published = running.finish().await;
    // An event stream that was told to come back later does so within 15 s.
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published as u64 == TOTAL, "{verdict}");
    let moved = reports.iter().filter(|report| report.transports.len() > 1).count();
    assert!(moved >= 3, "somebody was on the node that went: {moved}");
}

/// Enough clients that the window of the drain is not over before it was looked at.
async fn a_crowd_of(cluster: &Cluster) -> Vec<Client> {
    let mut crowd = Vec::new();
    for _ in 0..20 {
        crowd.push(Client::connect(cluster.address(0)).await);
    }
    crowd
}

#[tokio::test]
async fn streams_are_told_when_to_come_back_and_end_properly() {
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
    let reconnect = reconnect.expect("a browser is told in its own language as well");
    let data: serde_json::Value = serde_json::from_str(&reconnect.event.as_ref().unwrap().data).unwrap();
    // A browser has no back-off of its own, hence a second more.
    assert_eq!(reconnect.retry_ms, data["after_ms"].as_u64().map(|ms| ms + 1_000), "{reconnect:?}");
    let last = blocks.last().and_then(|block| block.event.as_ref()).expect("a last event");
    assert_eq!(last.kind, "close", "{blocks:?}");
}

#[tokio::test]
async fn a_waiting_poll_is_answered_early_and_goes_on_elsewhere() {
    let cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let at = publish(cluster.address(1), "a", &json!(1)).await;
    let request = RoomRequest::of(&["a"]).since(at.as_str()).with("wait=30");
    let waiting = tokio::spawn(poll::get(cluster.address(0), &request).send());
    let _crowd = a_crowd_of(&cluster).await;
    cluster.nodes[0].terminate();
    let answer = poll::served(&waiting.await.expect("a poll"));
    assert_eq!((answer.messages().count(), answer.cursor(), answer.more), (0, at.as_str(), false));
    publish(cluster.address(1), "a", &json!(2)).await;
    assert_eq!(poll::once(cluster.address(1), &RoomRequest::of(&["a"]).since(at)).await.data(), [json!(2)]);
}

#[tokio::test]
async fn a_draining_node_sends_new_clients_on_as_each_transport_understands_it() {
    let cluster = Cluster::over_redis(1).config(KEEP_ALL).drain(10).start().await;
    let address = cluster.address(0);
    let _crowd = a_crowd_of(&cluster).await;
    cluster.nodes[0].terminate();
    eventually("the node drains", async || http::get(cluster.nodes[0].admin, "/readyz").send().await.status != 200)
        .await;
    let mut events =
        EventStream::open(address, "/v1/rooms/a/sse", &[]).await.expect("an event stream, or it is over for good");
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
    let receipt = http::post(address, "/v1/rooms/a", &json!(1)).send();
    let receipt = within_time(patient(Duration::from_secs(5)), "publishes are served until the exit", receipt).await;
    receipt.expect(200);
}
