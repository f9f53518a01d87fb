//! Redis restarts, loses connections, forgets scripts and keys, stalls: every loss is reported, and no caller waits
//! long.

use super::{Gateway, connect, server::Server, until};
use crate::{
    Broker, BrokerError, Cursor, Gap, Offset, Publication, Publish, Reply, Room, Ticket,
    contract::{TestNode, WAIT_MAX, message, offsets, room, texts},
    redis::{
        ConnectError, RedisBroker,
        keys::{Keys, Part},
    },
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Reads everything after `since` from history, page by page.
pub(super) async fn caught_up(node: &TestNode, room: &Room, since: Cursor) -> (Vec<String>, Option<Gap>) {
    let (mut at, mut seen, mut gap) = (since, Vec::new(), None);
    loop {
        let page = node.since(room, at, 500).await;
        gap = gap.or(page.gap);
        seen.extend(texts(&page.publications));
        at = page.end();
        if at == page.head {
            return (seen, gap);
        }
    }
}

/// Waits for the results of all publishes by ticket, and returns the numbers of the acknowledged ones. A busy machine
/// may refuse some.
pub(super) async fn acknowledged(node: &TestNode, count: usize) -> Vec<u64> {
    let all = |seen: &crate::contract::Seen| Some(seen.results.clone()).filter(|results| results.len() == count);
    let results = node.seen.wait_for("every result", all).await;
    results.iter().filter(|(_, _, result)| result.is_ok()).map(|(ticket, _, _)| ticket.0[0]).collect()
}

fn number(publication: &Publication) -> u64 {
    String::from_utf8_lossy(&publication.payload).parse().unwrap()
}

async fn up(broker: &RedisBroker) {
    until("the broker to be up", WAIT_MAX, || async { broker.status().up }).await;
}

async fn down(broker: &RedisBroker) {
    until("the broker to be down", WAIT_MAX, || async { !broker.status().up }).await;
}

#[tokio::test]
async fn an_empty_restart_begins_a_new_epoch_and_delivers_the_heads() {
    let mut server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let (busy, quiet) = (room("busy"), room("quiet"));
    let before = a.node.subscribe(&busy).await;
    let quiet_before = a.node.subscribe(&quiet).await;
    a.node.say(&busy, "one").await;
    a.node.say(&busy, "two").await;
    server.kill();
    down(&a.broker).await;
    assert_eq!(a.node.try_publish(message(&busy, "lost")).await, Err(BrokerError::Unavailable));
    server.run().await;
    up(&a.broker).await;
    let heads = a.node.seen.wait_for("the heads after the restart", |seen| {
        let heads = [seen.heads(&busy), seen.heads(&quiet)].concat();
        Some(heads).filter(|heads| heads.len() == 2)
    });
    let heads = heads.await;
    assert!(heads.iter().all(|head| head.offset == Offset(0)));
    assert!(heads[0].epoch != before.epoch && heads[1].epoch != quiet_before.epoch);
    let after = a.node.say(&busy, "three").await;
    assert_eq!(after, Cursor::new(heads[0].epoch, Offset(1)), "the new epoch continues from its head");
    let page = a.node.since(&busy, Cursor::new(before.epoch, Offset(2)), 100).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["three".to_owned()], Some(Gap { missed: None })));
    assert!(a.broker.status().reconnects >= 3, "{:?}", a.broker.status());
}

/// A snapshot may be older than the last offsets that were given out. They are never given out again.
#[tokio::test]
async fn a_restart_from_a_snapshot_does_not_reuse_offsets() {
    let mut server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let room = room("snapshot");
    let before = a.node.subscribe(&room).await;
    a.node.say(&room, "kept").await;
    server.command("SAVE").await;
    a.node.say(&room, "forgotten").await;
    server.kill();
    server.run().await;
    until("history to answer", WAIT_MAX, || async {
        a.broker.status().up && a.node.try_publish(message(&room, "after")).await.is_ok()
    })
    .await;
    let page = a.node.since(&room, Cursor::new(before.epoch, Offset(2)), 100).await;
    assert_ne!(page.head.epoch, before.epoch);
    assert_eq!((texts(&page.publications), page.gap), (vec!["after".to_owned()], Some(Gap { missed: None })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_subscriber_connections_under_load_lose_nothing() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(server.config()).await, Gateway::connect(server.config()).await);
    let rooms: Vec<Room> = (0..40).map(|_| room("load")).collect();
    let mut heads = Vec::new();
    for room in &rooms {
        heads.push(a.node.subscribe(room).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (stop, node, rooms) = (Arc::clone(&stop), b.node.clone(), rooms.clone());
        async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                for room in &rooms {
                    node.say(room, &count.to_string()).await;
                }
                count += 1;
            }
            count
        }
    });
    for round in 1..=5 {
        let reconnects = a.broker.status().reconnects;
        server.command("CLIENT KILL TYPE pubsub").await;
        until("the reconnects", WAIT_MAX, || async { a.broker.status().reconnects >= reconnects + 2 }).await;
        up(&a.broker).await;
        assert!(b.broker.status().in_flight < 1000, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let count = publishing.await.unwrap();
    for (room, head) in rooms.iter().zip(heads) {
        // A member takes live messages in sequence, and reads history after a hole or a head.
        let last = Cursor::new(head.epoch, Offset(count));
        let has_end = |seen: &crate::contract::Recorder| {
            let seen = seen.now();
            seen.messages(room).last().and_then(|m| m.cursor) == Some(last) || seen.heads(room).contains(&last)
        };
        until("the end of the room", WAIT_MAX, || async { has_end(&a.node.seen) }).await;
        let (all, gap) = caught_up(&a.node, room, head).await;
        assert_eq!((all.len() as u64, gap), (count, None));
        let live = offsets(&a.node.seen.now().messages(room));
        assert!(live.windows(2).all(|pair| pair[0] < pair[1]), "live messages come once and in order");
    }
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again_and_messages_keep_their_order() {
    const COUNT: usize = 3000;
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let (room, other) = (room("scripts"), room("others"));
    a.node.subscribe(&room).await;
    for i in 0..COUNT {
        if i % 500 == 250 {
            server.command("SCRIPT FLUSH").await;
        }
        a.node.broker.publish(message(&room, &i.to_string()), Reply::Ticket(a.node.me, Ticket([i as u64; 3])));
    }
    let mut acknowledged = acknowledged(&a.node, COUNT).await;
    // One more after the last flush, which comes after all others.
    let last = COUNT.to_string();
    until("a publish", WAIT_MAX, || async { a.node.try_publish(message(&room, &last)).await.is_ok() }).await;
    acknowledged.push(COUNT as u64);
    let all = |seen: &crate::contract::Seen| {
        let numbers: Vec<u64> = seen.messages(&room).iter().map(number).collect();
        numbers.contains(&(COUNT as u64)).then_some(numbers)
    };
    let seen = a.node.seen.wait_for("the last message", all).await;
    assert!(seen.is_sorted(), "in order");
    assert!(acknowledged.iter().all(|i| seen.contains(i)), "nothing acknowledged is lost");
    server.command("SCRIPT FLUSH").await;
    a.node.subscribe(&other).await;
}

/// Between two pipelines of one node, another node loaded the scripts that Redis had forgotten: the second pipeline was
/// published, and then the first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_another_node_loaded_again_did_not_keep_the_order() {
    const COUNT: usize = 4000;
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(server.config()).await, Gateway::connect(server.config()).await);
    let (room, other) = (room("order"), room("others"));
    a.node.subscribe(&room).await;
    for i in 0..COUNT {
        if i % 20 == 10 {
            server.command("SCRIPT FLUSH").await;
        }
        b.node.broker.publish(message(&other, "x"), Reply::Nobody);
        a.node.broker.publish(message(&room, &i.to_string()), Reply::Ticket(a.node.me, Ticket([i as u64; 3])));
    }
    let acknowledged = acknowledged(&a.node, COUNT).await;
    let last = acknowledged.last().copied().expect("some publishes are acknowledged");
    let all = |seen: &crate::contract::Seen| {
        let numbers: Vec<u64> = seen.messages(&room).iter().map(number).collect();
        numbers.contains(&last).then_some(numbers)
    };
    let seen = a.node.seen.wait_for("the last message", all).await;
    let inversions = seen.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert_eq!(inversions, 0, "of {} messages", seen.len());
}

#[tokio::test]
async fn publishes_into_a_stalled_redis_are_refused_until_it_is_back() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let room = room("stall");
    let head = a.node.subscribe(&room).await;
    a.node.say(&room, "before").await;
    server.stall();
    // Redis is silent from here on: every result comes without its reply.
    until("the broker to be down", WAIT_MAX, || async {
        let refused = a.node.try_publish(message(&room, "during")).await;
        assert!(matches!(refused, Err(BrokerError::Unavailable)), "{refused:?}");
        !a.broker.status().up
    })
    .await;
    server.wake();
    up(&a.broker).await;
    let after = a.node.say(&room, "after").await;
    let (all, gap) = caught_up(&a.node, &room, head).await;
    assert_eq!((all.first().map(String::as_str), all.last().map(String::as_str)), (Some("before"), Some("after")));
    assert_eq!((all.len() as u64, gap), (after.offset.0, None), "refused messages may have been published, in order");
}

#[tokio::test]
async fn an_idle_connection_to_a_stalled_redis_goes_down() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    server.stall();
    down(&a.broker).await;
    server.wake();
    up(&a.broker).await;
}

#[tokio::test]
async fn joins_wait_while_redis_is_away() {
    let mut server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let (with, without) = (room("wait"), room("wait-live"));
    server.kill();
    down(&a.broker).await;
    let joins = tokio::spawn({
        let (node, with, without) = (a.node.clone(), with.clone(), without.clone());
        async move { tokio::join!(node.subscribe(&with), node.broker.subscribe(node.me, &without, None)).0 }
    });
    server.run().await;
    let head = tokio::time::timeout(WAIT_MAX, joins).await.unwrap().unwrap();
    assert_eq!(head.offset, Offset(0));
    up(&a.broker).await;
    a.node.say(&with, "hi").await;
    a.node.publish(Publish { retention: None, ..message(&without, "hi") }).await;
    a.node.seen.messages(&with, 1).await;
    a.node.seen.messages(&without, 1).await;
}

#[tokio::test]
async fn evicted_keys_are_reported_as_a_gap() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let keys = Keys::new("fanfare", 0, false);
    let (stream, meta) = (room("no-stream"), room("no-meta"));
    let mut begins = Vec::new();
    for room in [&stream, &meta] {
        begins.push(a.node.subscribe(room).await);
        for text in ["1", "2", "3"] {
            a.node.say(room, text).await;
        }
    }
    server.command(&format!("DEL {}", keys.of(Part::STREAM, &stream))).await;
    let page = a.node.since(&stream, Cursor::new(begins[0].epoch, Offset(1)), 100).await;
    assert_eq!((page.publications.len(), page.gap), (0, Some(Gap { missed: Some(2) })));
    assert_eq!(page.from, page.head);
    a.node.say(&stream, "4").await;
    let page = a.node.since(&stream, Cursor::new(begins[0].epoch, Offset(1)), 100).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["4".to_owned()], Some(Gap { missed: Some(2) })));

    server.command(&format!("DEL {}", keys.of(Part::META, &meta))).await;
    let old = Cursor::new(begins[1].epoch, Offset(1));
    let page = a.node.since(&meta, old, 100).await;
    assert_eq!((page.publications.len(), page.gap), (0, Some(Gap { missed: None })));
    a.node.say(&meta, "new").await;
    let page = a.node.since(&meta, old, 100).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["new".to_owned()], Some(Gap { missed: None })));
}

#[tokio::test]
async fn envelopes_of_another_version_are_counted_and_dropped() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let room = room("future");
    a.node.subscribe(&room).await;
    server
        .command(&format!("PUBLISH {} {}", Keys::new("fanfare", 0, false).of(Part::CHANNEL, &room), "x".repeat(80)))
        .await;
    until("the count", WAIT_MAX, || async { a.broker.status().unreadable == 1 }).await;
    a.node.say(&room, "hi").await;
    assert_eq!(a.node.seen.messages(&room, 1).await.len(), 1);
}

/// One SUBSCRIBE has at most 512 rooms. Thousands of rooms are subscribed again while messages are published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rooms_are_followed_again_after_a_reconnect() {
    const ROOMS: usize = 6000;
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let rooms: Vec<Room> = (0..ROOMS).map(|_| room("many")).collect();
    let joins = rooms.iter().map(|room| a.node.subscribe(room));
    futures_util::future::join_all(joins).await;
    assert_eq!(a.broker.status().rooms, ROOMS as u64);
    let reconnects = a.broker.status().reconnects;
    server.command("CLIENT KILL TYPE pubsub").await;
    // One message in each room while the subscriber connections are away.
    for (n, room) in (0..).zip(&rooms) {
        a.node.broker.publish(message(room, "missed"), Reply::Ticket(a.node.me, Ticket([n; 3])));
    }
    until("the reconnects", WAIT_MAX, || async { a.broker.status().reconnects >= reconnects + 2 }).await;
    up(&a.broker).await;
    for n in acknowledged(&a.node, ROOMS).await {
        let room = &rooms[n as usize];
        a.node
            .seen
            .wait_for("the message or the head", |seen| {
                (seen.messages(room).len() == 1 || seen.heads(room).iter().any(|head| head.offset == Offset(1)))
                    .then_some(())
            })
            .await;
    }
}

#[tokio::test]
async fn a_full_queue_refuses_publishes_and_each_one_gets_its_result() {
    let server = Server::start().await;
    let (broker, nodes) = connect(server.config(), 1).await;
    let room = room("flood");
    let payload = Bytes::from(vec![0; 64 * 1024]);
    let mut waiters = Vec::new();
    server.stall();
    for _ in 0..2000 {
        let (tx, rx) = tokio::sync::oneshot::channel();
        nodes[0].broker.publish(Publish { payload: payload.clone(), ..message(&room, "") }, Reply::Waiter(tx));
        waiters.push(rx);
    }
    assert!(broker.status().in_flight <= 600, "bounded in bytes");
    let mut overloaded = 0;
    for waiter in waiters {
        let result = tokio::time::timeout(WAIT_MAX, waiter).await.expect("a result without Redis").unwrap();
        overloaded += u32::from(result == Err(BrokerError::Overloaded));
    }
    server.wake();
    assert!(overloaded > 1000, "{overloaded} were refused at once");
    assert_eq!(broker.status().in_flight, 0);
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_is_refused_at_once() {
    let mut server = Server::start().await;
    let config = server.config();
    server.command("CONFIG SET requirepass secret").await;
    let error = RedisBroker::connect(config.clone(), Vec::new()).await.err().unwrap();
    assert!(matches!(&error, ConnectError::Refused { why, .. } if why.contains("NOAUTH")), "{error}");
    server.kill();
    let error = RedisBroker::connect(config.clone(), Vec::new()).await.err().unwrap();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    server.run().await;
    server.command("REPLICAOF 127.0.0.1 1").await;
    let error = RedisBroker::connect(config, Vec::new()).await.err().unwrap();
    assert!(matches!(error, ConnectError::Replica { .. }), "{error}");
}

/// A master that was demoted would still take messages and pass them on to no other node. The probe notices it.
#[tokio::test]
async fn connections_leave_a_demoted_master() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    server.command("REPLICAOF 127.0.0.1 1").await;
    down(&a.broker).await;
    server.command("REPLICAOF NO ONE").await;
    up(&a.broker).await;
    a.node.say(&room("promoted"), "hi").await;
}
