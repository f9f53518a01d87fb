//! The order of messages on every transport, and resumes from every transport to every other.

use std::time::Duration;

use fanfare_tests::load::{Load, Running};
use fanfare_tests::{Cluster, RoomRequest, Target, Transport, TransportClient};
use serde_json::json;

use super::{Entry, texts};
use crate::fixtures::split;
use crate::sentences::KEEP_ALL;

/// Messages that a client reads on one connection before it opens the next.
const STEP: usize = 40;

fn load(target: &Target, total: u64, pace: Duration) -> Running {
    let rooms = vec!["room:0".to_owned()];
    Load { target: target.clone(), publishers: 3, rooms, total, window: 4, pace }.start()
}

/// While three clients publish, one member stays and another one resumes at one node after the other. Both get the messages
/// of a WebSocket in the same order and byte for byte.
pub(super) async fn all_see_one_order_and_resumes_lose_and_repeat_nothing(entry: Entry, transport: Transport) {
    const TOTAL: usize = 600;
    let setup = entry.start(Cluster::over_redis(2).config(KEEP_ALL)).await;
    let (target, request) = (&setup.target, RoomRequest::of(&["room:0"]));
    let mut witness = TransportClient::join(target.address(0), Transport::WebSocket, &request).await;
    let mut stays = TransportClient::join(target.address(1), transport, &request).await;
    let mut walks = TransportClient::join(target.address(0), transport, &request).await;
    let running = load(target, TOTAL as u64, Duration::from_millis(2));
    let mut walked = texts(&mut walks, STEP).await;
    for hop in 1.. {
        let since = walks.cursor();
        // Dropped in the middle of the stream: what is under way to it is lost, and is sent again after the cursor.
        walks = TransportClient::open(target.address(hop), transport, &request.clone().since(since.as_str())).await;
        let joined = walks.take("joined").await.json;
        assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &json!(since)), "hop {hop}: {joined}");
        walked.extend(texts(&mut walks, STEP.min(TOTAL - walked.len())).await);
        if walked.len() == TOTAL {
            break;
        }
    }
    running.finish().await;
    let expected = texts(&mut witness, TOTAL).await;
    assert_eq!(texts(&mut stays, TOTAL).await, expected, "the member that stays");
    assert_eq!(walked, expected, "the member that resumes");
}

/// Under load, one client goes through every ordered pair of transports, with each connection at the next node.
pub(super) async fn every_transport_resumes_where_any_other_stopped(entry: Entry) {
    const PER_HOP: usize = 15;
    let setup = entry.start(Cluster::over_redis(2).config(KEEP_ALL)).await;
    let request = RoomRequest::of(&["room:0"]);
    let walk = Transport::walk();
    let total = PER_HOP * walk.len();
    let mut client = TransportClient::join(setup.target.address(0), walk[0], &request).await;
    let running = load(&setup.target, total as u64, Duration::from_millis(10));
    let (epoch, mut at) = split(&json!(client.cursor()));
    for (hop, pair) in walk.windows(2).enumerate() {
        for _ in 0..PER_HOP {
            at += 1;
            assert_eq!(split(&client.message().await["cursor"]), (epoch.clone(), at), "{pair:?}");
        }
        let since = client.cursor();
        assert_eq!(since, format!("{epoch}.{at}"), "the cursor on {:?}", pair[0]);
        client =
            TransportClient::open(setup.target.address(hop + 1), pair[1], &request.clone().since(since.as_str())).await;
        let joined = client.take("joined").await.json;
        assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &json!(since)), "{pair:?}: {joined}");
    }
    for _ in 0..PER_HOP {
        at += 1;
        assert_eq!(split(&client.message().await["cursor"]), (epoch.clone(), at), "at the end");
    }
    running.finish().await;
}
