//! Cases about the results of publishes, and about control messages between nodes.

use super::{TestNode, message, room};
use crate::{BrokerError, NodeId, NodeTarget, Reply, Ticket};
use bytes::Bytes;
use std::collections::HashSet;

pub async fn control_messages_reach_all_nodes_or_one(nodes: &[TestNode]) {
    let mut ids = Vec::new();
    for node in nodes {
        ids.push(node.id().await);
    }
    assert!(nodes[0].broker.send_control(NodeTarget::All, Bytes::from_static(b"all\0")).await.unwrap());
    for node in nodes {
        node.seen.wait_for("a control message to all", |seen| (seen.controls == [&b"all\0"[..]]).then_some(())).await;
    }
    assert!(nodes[0].broker.send_control(NodeTarget::One(ids[1]), Bytes::from_static(b"one")).await.unwrap());
    assert!(!nodes[0].broker.send_control(NodeTarget::One(NodeId(7)), Bytes::from_static(b"gone")).await.unwrap());
    nodes[0].broker.send_control(NodeTarget::All, Bytes::from_static(b"end")).await.unwrap();
    for (node, id) in nodes.iter().zip(&ids) {
        let controls = |seen: &super::recorder::Seen| {
            seen.controls.contains(&Bytes::from_static(b"end")).then(|| seen.controls.iter().skip(1).cloned().collect())
        };
        let controls: HashSet<Bytes> = node.seen.wait_for("the last control message", controls).await;
        if *id == ids[1] {
            // The two come over different channels, in any order.
            node.seen
                .wait_for("the control message to one node", |s| s.controls.iter().any(|n| n == "one").then_some(()))
                .await;
        } else {
            assert_eq!(controls, HashSet::from([Bytes::from_static(b"end")]));
        }
    }
}

pub async fn every_publish_reports_its_result_as_asked(nodes: &[TestNode]) {
    let room = room("replies");
    let node = &nodes[0];
    node.subscribe(&room).await;
    let ticket = |n| Ticket([n, 1, 2]);
    node.broker.publish(message(&room, "nobody"), Reply::Nobody);
    node.broker.publish(message(&room, "ticket"), Reply::Ticket(node.me, ticket(1)));
    node.broker.publish(message(&room, "on failure"), Reply::OnFailure(node.me, ticket(2)));
    let waited = node.publish(message(&room, "waiter")).await;
    node.broker.publish(message(&room, "ticket"), Reply::Ticket(node.me, ticket(3)));
    let results =
        node.seen.wait_for("two results", |seen| Some(seen.results.clone()).filter(|results| results.len() >= 2)).await;
    let seen = node.seen.messages(&room, 5).await;
    assert_eq!(waited.cursor, seen[3].cursor);
    assert_eq!(results.len(), 2, "OnFailure reports no success");
    for ((got_ticket, got_room, result), (n, publication)) in results.iter().zip([(1, &seen[1]), (3, &seen[4])]) {
        assert_eq!((*got_ticket, got_room), (ticket(n), &room));
        let published = result.as_ref().unwrap();
        assert_eq!((published.cursor, published.duplicate), (publication.cursor, false));
    }
}

/// Also, a waiter that is gone disturbs nothing.
pub async fn a_success_is_never_reported_as_a_failure(nodes: &[TestNode]) {
    let room = room("gone");
    nodes[0].subscribe(&room).await;
    let (tx, rx) = tokio::sync::oneshot::channel();
    drop(rx);
    nodes[0].broker.publish(message(&room, "one"), Reply::Waiter(tx));
    nodes[0].broker.publish(message(&room, "two"), Reply::OnFailure(nodes[0].me, Ticket([0; 3])));
    nodes[0].seen.messages(&room, 2).await;
    let failures: Vec<BrokerError> =
        nodes[0].seen.now().results.iter().filter_map(|(_, _, result)| result.clone().err()).collect();
    assert_eq!(failures, []);
    assert!(nodes[0].broker.status().up);
}
