//! The first frames of a connection: `welcome`, and the rooms that the URL names.

use std::collections::BTreeMap;

use fanfare_tests::Client;
use serde_json::{Value, json};

use crate::fixtures::{node_and_client, one_node, split};

/// The `joined` frames of `rooms` rooms by room; they come in any order.
async fn joined(client: &mut Client, rooms: usize) -> BTreeMap<String, Value> {
    let mut joined = BTreeMap::new();
    for _ in 0..rooms {
        let frame = client.take("joined").await.json;
        joined.insert(frame["room"].as_str().unwrap_or_default().to_owned(), frame);
    }
    joined
}

#[tokio::test]
async fn welcome_has_the_session_the_node_and_the_limits() {
    let (_cluster, client) = node_and_client().await;
    let welcome = &client.welcome;
    assert!(client.session().len() >= 8, "{welcome}");
    assert_eq!(welcome["node"], "a");
    let route = welcome["route"].as_str().unwrap();
    assert!(route.len() == 32 && route.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()), "{route}");
    let ping_ms = welcome["ping_ms"].as_u64().unwrap();
    assert!((20_000..=30_000).contains(&ping_ms), "{ping_ms}");
    assert_eq!(welcome["limits"], json!({"message_bytes": 65536, "rooms": 128}));
    assert!(welcome.get("user").is_none() && welcome.get("post").is_none(), "{welcome}");
}

#[tokio::test]
async fn session_ids_are_unique_and_a_node_has_one_route() {
    let (cluster, one) = node_and_client().await;
    let other = Client::connect(cluster.address(0)).await;
    assert_ne!(one.session(), other.session());
    assert_eq!(one.welcome["route"], other.welcome["route"]);
}

#[tokio::test]
async fn rooms_of_the_query_are_joined() {
    let cluster = one_node().await;
    let mut client = Client::open(cluster.address(0), "/ws?room=b&room=a&room=x,y").await;
    let joined = joined(&mut client, 3).await;
    assert_eq!(joined.keys().collect::<Vec<_>>(), ["a", "b", "x,y"]);
    assert!(joined.values().all(|frame| frame["cursor"].is_string() && frame.get("resumed").is_none()), "{joined:?}");
}

#[tokio::test]
async fn rooms_of_the_path_are_joined_and_decoded() {
    let cluster = one_node().await;
    let mut client = Client::open(cluster.address(0), "/v1/rooms/b,a%2Fc/ws").await;
    assert_eq!(joined(&mut client, 2).await.keys().collect::<Vec<_>>(), ["a/c", "b"]);
    client.publish("a/c", json!(1)).await;
    assert_eq!(client.message().await["room"], "a/c");
}

#[tokio::test]
async fn since_of_the_query_resumes_every_room_in_the_order_of_the_list() {
    let cluster = one_node().await;
    let mut first = Client::connect(cluster.address(0)).await;
    let mut since = Vec::new();
    for room in ["a", "b"] {
        since.push(first.join(room).await["cursor"].as_str().unwrap().to_owned());
        first.publish(room, json!(room)).await;
    }
    let path = format!("/ws?room=a&room=b&since={}", since.join("~"));
    let mut second = Client::open(cluster.address(0), &path).await;
    let joined = joined(&mut second, 2).await;
    for (room, since) in ["a", "b"].into_iter().zip(&since) {
        assert_eq!((&joined[room]["resumed"], &joined[room]["cursor"]), (&json!(true), &json!(since)), "{joined:?}");
    }
    let mut data = second.data(2).await;
    data.sort_by_key(ToString::to_string);
    assert_eq!(data, [json!("a"), json!("b")]);
}

#[tokio::test]
async fn an_empty_part_of_since_means_the_head_of_that_room() {
    let cluster = one_node().await;
    let mut first = Client::connect(cluster.address(0)).await;
    let start = first.join("a").await["cursor"].as_str().unwrap().to_owned();
    first.publish("a", json!("one")).await;
    first.publish("b", json!("two")).await;
    let mut second = Client::open(cluster.address(0), &format!("/ws?room=a&room=b&since={start}~")).await;
    let joined = joined(&mut second, 2).await;
    assert_eq!(joined["a"]["resumed"], true, "{joined:?}");
    assert_eq!(split(&joined["b"]["cursor"]).1, 1, "{joined:?}");
    assert_eq!(second.message().await["data"], "one");
    assert!(second.so_far().await.is_empty());
}

#[tokio::test]
async fn the_options_of_the_query_are_those_of_join() {
    let cluster = one_node().await;
    let mut other = Client::connect(cluster.address(0)).await;
    for n in 0..3 {
        other.publish("a", json!(n)).await;
    }
    let mut client = Client::open(cluster.address(0), "/ws?room=a&presence=1&echo=0&last=2").await;
    let joined = client.take("joined").await.json;
    assert_eq!(joined["members"].as_array().map(Vec::len), Some(1), "{joined}");
    assert_eq!(client.data(2).await, [json!(1), json!(2)]);
    client.publish("a", json!("own")).await;
    other.publish("a", json!("other")).await;
    assert_eq!(client.message().await["data"], "other");
}

#[tokio::test]
async fn a_refused_room_in_the_url_gets_an_error_and_the_others_are_joined() {
    let cluster = one_node().await;
    let mut client = Client::open(cluster.address(0), "/ws?room=%24secret&room=a").await;
    let error = client.take("error").await.json;
    assert_eq!((&error["code"], &error["room"]), (&json!("room_invalid"), &json!("$secret")), "{error}");
    assert_eq!(client.take("joined").await.json["room"], "a");
}

#[tokio::test]
async fn a_since_with_too_few_parts_is_a_bad_request() {
    let cluster = one_node().await;
    let mut client = Client::open(cluster.address(0), "/ws?room=a&room=b&since=abcdefgh.1").await;
    assert_eq!(client.take("error").await.json["code"], "bad_request");
    client.join("c").await;
}
