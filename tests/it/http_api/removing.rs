//! Kicking a user from one room, and disconnecting a user everywhere.

use fanfare_tests::Client;
use fanfare_tests::http::delete;
use serde_json::json;

use crate::fixtures::node_and_client;

#[tokio::test]
async fn a_kicked_member_gets_left_and_no_more_messages() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    for room in ["a", "b"] {
        client.join(room).await;
        other.join(room).await;
    }
    let path = format!("/v1/rooms/a/members/{}", client.session());
    assert_eq!(delete(cluster.address(0), &path).send().await.status, 204);
    let left = client.take("left").await.json;
    assert_eq!((&left["room"], &left["reason"]), (&json!("a"), &json!("kicked")));
    other.publish("a", json!("no")).await;
    other.publish("b", json!("yes")).await;
    assert_eq!(client.message().await["data"], "yes");
    assert_eq!(other.data(2).await, [json!("no"), json!("yes")], "others stay");
}

#[tokio::test]
async fn a_disconnected_user_is_closed_with_4403() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    let path = format!("/v1/users/{}", client.session());
    assert_eq!(delete(cluster.address(0), &path).send().await.status, 204);
    assert_eq!(client.ended().await.code, Some(4403));
    other.join("a").await;
}

#[tokio::test]
async fn removing_an_absent_user_succeeds() {
    let (cluster, _client) = node_and_client().await;
    for path in ["/v1/rooms/a/members/absent", "/v1/users/absent"] {
        assert_eq!(delete(cluster.address(0), path).send().await.status, 204, "{path}");
    }
}
