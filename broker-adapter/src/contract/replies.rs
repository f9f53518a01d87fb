//! Cases about who hears what became of a publish, and about controls between nodes.

use super::{Node, message, room};
use crate::{BrokerError, NodeId, NodeTarget, Reply, Ticket};
use bytes::Bytes;
use std::collections::HashSet;

pub async fn a_note_to_all_and_to_one(nodes: &[Node]) {
    let mut ids = Vec::new();
    for node in nodes {
        ids.push(node.id().await);
    }
    assert!(nodes[0].broker.send_control(NodeTarget::All, Bytes::from_static(b"all\0")).await.unwrap());
    for node in nodes {
        node.seen.wait_for("a note to all", |seen| (seen.controls == [&b"all\0"[..]]).then_some(())).await;
    }
    assert!(nodes[0].broker.send_control(NodeTarget::One(ids[1]), Bytes::from_static(b"one")).await.unwrap());
    assert!(!nodes[0].broker.send_control(NodeTarget::One(NodeId(7)), Bytes::from_static(b"gone")).await.unwrap());
    nodes[0].broker.send_control(NodeTarget::All, Bytes::from_static(b"end")).await.unwrap();
    for (node, id) in nodes.iter().zip(&ids) {
        let controls = |seen: &super::recorder::Seen| {
            seen.controls.contains(&Bytes::from_static(b"end")).then(|| seen.controls.iter().skip(1).cloned().collect())
        };
        let controls: HashSet<Bytes> = node.seen.wait_for("the last note", controls).await;
        if *id == ids[1] {
            // The two travel on channels of their own: wait for the addressed one too.
            node.seen.wait_for("the addressed note", |s| s.controls.iter().any(|n| n == "one").then_some(())).await;
        } else {
            assert_eq!(controls, HashSet::from([Bytes::from_static(b"end")]));
        }
    }
}

pub async fn every_reply_is_given(nodes: &[Node]) {
    let room = room("replies");
    let node = &nodes[0];
    node.subscribe(&room).await;
    let ticket = |n| Ticket([n, 1, 2]);
    node.broker.publish(message(&room, "nobody"), Reply::Nobody);
    node.broker.publish(message(&room, "ticket"), Reply::Ticket(node.me, ticket(1)));
    node.broker.publish(message(&room, "on failure"), Reply::OnFailure(node.me, ticket(2)));
    let waited = node.publish(message(&room, "waiter")).await;
    node.broker.publish(message(&room, "ticket"), Reply::Ticket(node.me, ticket(3)));
    let outcomes = node
        .seen
        .wait_for("two outcomes", |seen| Some(seen.outcomes.clone()).filter(|outcomes| outcomes.len() >= 2))
        .await;
    let seen = node.seen.messages(&room, 5).await;
    assert_eq!(waited.cursor, seen[3].cursor);
    assert_eq!(outcomes.len(), 2, "a success is no business of OnFailure");
    for ((got_ticket, got_room, outcome), (n, publication)) in outcomes.iter().zip([(1, &seen[1]), (3, &seen[4])]) {
        assert_eq!((*got_ticket, got_room), (ticket(n), &room));
        let published = outcome.as_ref().unwrap();
        assert_eq!((published.cursor, published.duplicate), (publication.cursor, false));
    }
}

/// A waiter that went away is no reason to stop.
pub async fn a_failure_is_not_made_up(nodes: &[Node]) {
    let room = room("gone");
    nodes[0].subscribe(&room).await;
    let (tx, rx) = tokio::sync::oneshot::channel();
    drop(rx);
    nodes[0].broker.publish(message(&room, "one"), Reply::Waiter(tx));
    nodes[0].broker.publish(message(&room, "two"), Reply::OnFailure(nodes[0].me, Ticket([0; 3])));
    nodes[0].seen.messages(&room, 2).await;
    let failures: Vec<BrokerError> =
        nodes[0].seen.now().outcomes.iter().filter_map(|(_, _, outcome)| outcome.clone().err()).collect();
    assert_eq!(failures, []);
    assert!(nodes[0].broker.status().up);
}
