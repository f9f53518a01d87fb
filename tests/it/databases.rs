//! Two clusters on one Redis server: the database of the URL keeps them apart, or the prefix does. Redis itself keeps
//! only the keys of its databases apart: a message published in one is sent to the subscribers in all.

use std::net::SocketAddr;

use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::{Client, Cluster, http};
use serde_json::json;

const NO_HISTORY: &str = "[[rooms]]\nmatch = \"plain:*\"\nhistory = \"off\"\n";

/// What happens on `other` must not reach the members on `own`.
async fn are_separate(own: SocketAddr, other: SocketAddr, tag: &str) {
    let rooms = [format!("plain:{tag}"), format!("kept:{tag}")];
    let mut member = Client::open(own, "/ws").await;
    let mut stranger = Client::open(other, "/ws").await;
    let own_session = member.session();
    for room in &rooms {
        member.join_with(json!({"room": room, "presence": true})).await;
    }
    // Member events, messages, and a kick by the session's id.
    for room in &rooms {
        let joined = stranger.join_with(json!({"room": room, "presence": true})).await;
        assert_eq!(joined["members"].as_array().map(Vec::len), Some(1), "{joined}");
        stranger.publish(room, json!("of the other")).await;
    }
    http::delete(other, &format!("/v1/users/{own_session}")).send().await;
    stranger.leave(&rooms[0]).await;
    for room in &rooms {
        http::post(own, &format!("/v1/rooms/{room}"), &json!("own")).send().await.expect(200);
        assert_eq!(member.message().await["data"], "own", "{room}");
    }
    let others: Vec<_> = member.so_far().await.into_iter().map(|frame| frame.text).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// A's members got B's messages of rooms without history, B's member events and B's kicks.
#[tokio::test]
async fn clusters_in_two_databases_of_one_server_saw_each_other() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let addresses = vec![format!("{}/0", redis.url()), format!("{}/1", redis.url())];
    let cluster = Cluster::over_addresses(2, addresses).config(NO_HISTORY).start().await;
    are_separate(cluster.address(0), cluster.address(1), "a").await;
    are_separate(cluster.address(1), cluster.address(0), "b").await;
}

#[tokio::test]
async fn clusters_with_two_prefixes_share_a_database_and_nothing_else() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let start = async |prefix: &str| {
        let plan = Cluster::over_addresses(1, vec![redis.url()]).config(NO_HISTORY);
        plan.flags(&["--redis-prefix", prefix]).start().await
    };
    let (one, other) = (start("one").await, start("other").await);
    are_separate(one.address(0), other.address(0), "a").await;
    are_separate(other.address(0), one.address(0), "b").await;
}
