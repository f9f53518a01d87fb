//! Presence: the command, the members in `joined`, and the events that follow.

use fanfare_tests::Client;
use serde_json::json;

use crate::fixtures::{node_and_client, one_node_with};

#[tokio::test]
async fn presence_counts_the_members_of_a_room() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    other.join("a").await;
    let reply = client.ask(json!({"type": "presence", "room": "a"})).await;
    assert_eq!((&reply["type"], &reply["room"], &reply["count"]), (&json!("presence"), &json!("a"), &json!(2)));
    let mut users: Vec<_> = reply["members"].as_array().unwrap().iter().map(|member| member["user"].clone()).collect();
    users.sort_by_key(ToString::to_string);
    let mut expected = vec![json!(client.session()), json!(other.session())];
    expected.sort_by_key(ToString::to_string);
    assert_eq!(users, expected, "an anonymous session is named by its id");
    assert!(reply["members"].as_array().unwrap().iter().all(|member| member["sessions"] == 1), "{reply}");
}

#[tokio::test]
async fn presence_of_an_empty_room_is_empty() {
    let (_cluster, mut client) = node_and_client().await;
    let reply = client.ask(json!({"type": "presence", "room": "empty"})).await;
    assert_eq!((&reply["count"], &reply["members"]), (&json!(0), &json!([])));
}

#[tokio::test]
async fn a_join_with_presence_gets_events_for_joins_and_leaves() {
    let (cluster, mut client) = node_and_client().await;
    let joined = client.join_with(json!({"room": "a", "presence": true})).await;
    let members = joined["members"].as_array().unwrap();
    assert!(members.iter().all(|member| member["user"] == client.session()), "{joined}");
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("a").await;
    let came = loop {
        let frame = client.take("member_joined").await.json;
        if frame["member"]["user"] != client.session() {
            break frame;
        }
    };
    assert_eq!((&came["room"], &came["member"]["user"]), (&json!("a"), &json!(other.session())));
    other.leave("a").await;
    let left = client.take("member_left").await.json;
    assert_eq!((&left["room"], &left["member"]["user"]), (&json!("a"), &json!(other.session())));
}

#[tokio::test]
async fn a_lost_connection_is_a_leave() {
    let (cluster, mut client) = node_and_client().await;
    client.join_with(json!({"room": "a", "presence": true})).await;
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("a").await;
    let user = other.session();
    drop(other);
    assert_eq!(client.take("member_left").await.json["member"]["user"], user);
}

#[tokio::test]
async fn a_join_without_presence_gets_no_events() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("a").await;
    other.leave("a").await;
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn presence_of_a_room_without_presence_is_refused() {
    let cluster = one_node_with("[[rooms]]\nmatch = \"quiet:*\"\npresence = false\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    client.join("quiet:1").await;
    assert_eq!(client.refused(json!({"type": "presence", "room": "quiet:1"})).await, "presence_off");
}
