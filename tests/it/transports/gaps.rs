//! Gaps on every transport: a cursor older than the history, another epoch, a Redis that has lost its data.

use std::time::Duration;

use fanfare_tests::wait::{ticks, within};
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient};
use serde_json::{Value, json};

use super::{on_all, publish};
use crate::fixtures::{NO_RATE, one_node, one_node_with, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// More than a node keeps beyond the configured 10, so that the oldest are certainly gone.
const MANY: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transport_reports_how_much_a_too_old_cursor_missed() {
    let rules = "[[rooms]]\nmatch = \"*\"\nhistory = { messages = 10, ttl = \"1h\" }\n";
    let cluster = one_node_with(&format!("{rules}{NO_RATE}")).await;
    let at = publish(cluster.address(0), "a", &json!(0)).await;
    publish_numbers(&cluster, "a", 1, MANY).await;
    for transport in Transport::ALL {
        let mut client =
            TransportClient::open(cluster.address(0), transport, &RoomRequest::of(&["a"]).since(at.as_str())).await;
        let joined = client.take("joined").await.json;
        let (epoch, from) = split(&joined["cursor"]);
        assert_eq!(epoch, split(&json!(at)).0);
        assert_eq!(joined["resumed"], false, "{}: {joined}", transport.name());
        assert_eq!(joined["gap"], json!({"missed": from - 1}), "{}: {joined}", transport.name());
        assert_eq!(json!(client.cursor()), joined["cursor"], "{}: the cursor to resume from now", transport.name());
        assert!(MANY as u64 + 1 - from >= 10, "at least the configured number of messages is kept: {joined}");
        for offset in from + 1..=MANY as u64 + 1 {
            assert_eq!(split(&client.message().await["cursor"]).1, offset, "{}", transport.name());
        }
    }
}

#[tokio::test]
async fn every_transport_reports_a_gap_of_unknown_size_for_another_epoch() {
    let cluster = one_node().await;
    let mut last = String::new();
    for n in 1..=3 {
        last = publish(cluster.address(0), "a", &json!(n)).await;
    }
    let beyond = format!("{}.99", split(&json!(last)).0);
    for since in ["another-epoch.2", &beyond] {
        for transport in Transport::ALL {
            let mut client =
                TransportClient::open(cluster.address(0), transport, &RoomRequest::of(&["a"]).since(since)).await;
            let joined = client.take("joined").await.json;
            let gap = (&joined["resumed"], &joined["gap"]);
            assert_eq!(gap, (&json!(false), &json!({"missed": null})), "{} since {since}: {joined}", transport.name());
            assert_eq!(split(&joined["cursor"]).1, 0, "before the oldest kept one: {joined}");
            assert_eq!(client.data(3).await, [json!(1), json!(2), json!(3)], "{} since {since}", transport.name());
        }
    }
}

/// The gap that a client gets, and the client: in its stream, or in the answer to a poll that follows a 503.
async fn until_a_gap(mut client: TransportClient) -> (Value, TransportClient) {
    if !client.transport.polls() {
        return (client.take("gap").await.json, client);
    }
    let mut tick = ticks(Duration::from_millis(100));
    let request = RoomRequest::of(&["quiet"]).since(client.cursor());
    loop {
        while let Ok(frame) = client.try_next().await {
            let mut reply = frame.json;
            if reply["type"] == "gap" {
                return (reply, client);
            }
            // The gap stands in the reply to a join: the poll came before the node knew of the new epoch, or right after.
            if reply["gap"].is_object() {
                assert_eq!(reply["gap"], json!({"missed": null}), "{reply}");
                (reply["from"], reply["to"]) = (json!(request.since), reply["cursor"].clone());
                return (reply, client);
            }
        }
        tick.tick().await;
        client = TransportClient::open(client.address, client.transport, &request).await;
    }
}

/// Members with a stream and clients with a waiting poll get the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transport_reports_a_new_epoch_to_members() {
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let target = fanfare_tests::Target::direct(&cluster);
    let mut clients = on_all(&target, &RoomRequest::of(&["quiet"])).await;
    let last = publish(cluster.address(0), "quiet", &json!(1)).await;
    for client in &mut clients {
        assert_eq!(client.message().await["cursor"], json!(last));
    }
    let waiting: Vec<_> = clients.into_iter().map(|client| tokio::spawn(until_a_gap(client))).collect();
    cluster.redis().kill();
    cluster.redis().start_empty().await;
    let mut back: Vec<(Value, TransportClient)> = Vec::new();
    for task in waiting {
        back.push(within("a gap", task).await.expect("the client's task ends by itself"));
    }
    let mut publisher = Client::connect(cluster.address(1)).await;
    let next = publisher.publish("quiet", json!(2)).await["cursor"].clone();
    for (gap, mut client) in back {
        let name = client.transport.name();
        assert_eq!((&gap["room"], &gap["from"]), (&json!("quiet"), &json!(last)), "{name}: {gap}");
        assert_eq!(json!(client.cursor()), gap["to"], "{name}: {gap}");
        assert_ne!(split(&gap["to"]).0, split(&json!(last)).0, "{name}: {gap}");
        assert_eq!(client.message().await["cursor"], next, "{name} after {gap}");
    }
}
