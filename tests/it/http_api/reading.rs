//! Occupancy, the list of rooms, history and presence over HTTP.

use fanfare_tests::Client;
use fanfare_tests::http::get;
use serde_json::{Value, json};

use crate::fixtures::{node_and_client, publish_numbers, split};

#[tokio::test]
async fn occupancy_counts_sessions_and_users() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    other.join("a").await;
    let published = client.publish("a", json!(1)).await;
    let reply = get(cluster.address(0), "/v1/rooms/a").send().await.expect(200);
    assert_eq!((&reply["room"], &reply["sessions"], &reply["users"]), (&json!("a"), &json!(2), &json!(2)));
    assert_eq!(reply["cursor"], published["cursor"]);
    let empty = get(cluster.address(0), "/v1/rooms/empty").send().await.expect(200);
    assert_eq!((&empty["sessions"], &empty["users"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn rooms_with_members_are_listed_by_prefix() {
    let (cluster, mut client) = node_and_client().await;
    for room in ["chat:1", "chat:2", "news"] {
        client.join(room).await;
    }
    let names = |reply: &Value| -> Vec<String> {
        let list = reply["rooms"].as_array().unwrap_or_else(|| panic!("{reply}"));
        let mut names: Vec<String> =
            list.iter().map(|item| item["room"].as_str().or(item.as_str()).unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let all = get(cluster.address(0), "/v1/rooms").send().await.expect(200);
    assert_eq!(names(&all), ["chat:1", "chat:2", "news"]);
    let chat = get(cluster.address(0), "/v1/rooms?prefix=chat%3A").send().await.expect(200);
    assert_eq!(names(&chat), ["chat:1", "chat:2"]);
    let one = get(cluster.address(0), "/v1/rooms?prefix=chat%3A&limit=1").send().await.expect(200);
    assert_eq!(names(&one).len(), 1);
}

#[tokio::test]
async fn history_is_the_same_as_over_the_websocket() {
    let (cluster, mut client) = node_and_client().await;
    publish_numbers(&cluster, "a", 1, 5).await;
    let all = get(cluster.address(0), "/v1/rooms/a/history").send().await.expect(200);
    let over_websocket = client.ask(json!({"type": "history", "room": "a"})).await;
    assert_eq!((&all["messages"], &all["cursor"]), (&over_websocket["messages"], &over_websocket["cursor"]));
    let since = all["messages"][1]["cursor"].as_str().unwrap();
    let path = format!("/v1/rooms/a/history?since={since}&limit=2");
    let page = get(cluster.address(0), &path).send().await.expect(200);
    let data: Vec<&Value> = page["messages"].as_array().unwrap().iter().map(|message| &message["data"]).collect();
    assert_eq!((data, split(&page["cursor"]).1), (vec![&json!(3), &json!(4)], 4));
    let bad = get(cluster.address(0), "/v1/rooms/a/history?since=x").send().await;
    assert_eq!(bad.problem(400), "bad_request");
}

#[tokio::test]
async fn presence_is_the_same_as_over_the_websocket() {
    let (cluster, mut client) = node_and_client().await;
    client.join("a").await;
    let reply = get(cluster.address(0), "/v1/rooms/a/presence").send().await.expect(200);
    let over_websocket = client.ask(json!({"type": "presence", "room": "a"})).await;
    assert_eq!((&reply["count"], &reply["members"]), (&over_websocket["count"], &over_websocket["members"]));
    assert_eq!(reply["members"][0]["user"], client.session());
}
