//! `join` and `leave`: replies, room names, the last messages, echo and exclusion.

use fanfare_tests::Client;
use serde_json::{Value, json};

use crate::fixtures::{node_and_client, one_node_with, split};

#[tokio::test]
async fn joined_has_the_room_and_its_head() {
    let (_cluster, mut client) = node_and_client().await;
    let joined = client.join("a").await;
    assert_eq!(joined["room"], "a");
    let (epoch, offset) = split(&joined["cursor"]);
    assert_eq!(offset, 0);
    assert!(epoch.len() >= 8 && epoch.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)), "{epoch}");
    for absent in ["resumed", "gap", "members"] {
        assert!(joined.get(absent).is_none(), "{joined}");
    }
    let published = client.publish("a", json!("x")).await;
    assert_eq!(split(&published["cursor"]), (epoch, 1));
}

#[tokio::test]
async fn commands_without_an_id_are_answered_without_one() {
    let (_cluster, mut client) = node_and_client().await;
    for (command, reply) in [
        (json!({"type": "join", "room": "a"}), "joined"),
        (json!({"type": "presence", "room": "a"}), "presence"),
        (json!({"type": "history", "room": "a"}), "history"),
        (json!({"type": "ping"}), "pong"),
        (json!({"type": "dance"}), "error"),
        (json!({"type": "leave", "room": "a"}), "left"),
    ] {
        client.send(command).await;
        let frame = client.take(reply).await;
        assert!(frame.json.get("id").is_none(), "{}", frame.text);
    }
}

#[tokio::test]
async fn a_publish_without_an_id_gets_no_reply() {
    let (_cluster, mut client) = node_and_client().await;
    client.join("a").await;
    client.send(json!({"type": "publish", "room": "a", "data": 1})).await;
    client.publish("a", json!(2)).await;
    assert_eq!(client.data(2).await, [json!(1), json!(2)]);
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn a_second_join_is_answered_and_messages_still_come_once() {
    let (_cluster, mut client) = node_and_client().await;
    client.join("a").await;
    client.publish("a", json!(1)).await;
    assert_eq!(client.data(1).await, [json!(1)]);
    let again = client.join("a").await;
    assert_eq!(split(&again["cursor"]).1, 1);
    client.publish("a", json!(2)).await;
    client.publish("a", json!(3)).await;
    assert_eq!(client.data(2).await, [json!(2), json!(3)]);
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn messages_after_a_leave_are_not_delivered() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join("a").await;
    client.join("b").await;
    let left = client.leave("a").await;
    assert!(left["room"] == "a" && left.get("reason").is_none(), "{left}");
    other.publish("a", json!("no")).await;
    other.publish("b", json!("yes")).await;
    assert_eq!(client.message().await["data"], "yes");
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn leaving_a_room_without_membership_is_an_error() {
    let (_cluster, mut client) = node_and_client().await;
    assert_eq!(client.refused(json!({"type": "leave", "room": "a"})).await, "not_joined");
}

#[tokio::test]
async fn room_names_are_visible_ascii_without_reserved_characters() {
    let (_cluster, mut client) = node_and_client().await;
    let long = "x".repeat(256);
    for name in ["", "a b", "a\tb", "a{b", "a}b", "a\"b", "a\\b", "é", "$a", &long] {
        assert_eq!(client.refused(json!({"type": "join", "room": name})).await, "room_invalid", "{name:?}");
    }
    for name in ["a", "chat:1", "a/b?c=d&e", "a,b", "~!@#%^*()`'", "a$", &"x".repeat(255)] {
        assert_eq!(client.join(name).await["room"], name);
    }
}

#[tokio::test]
async fn the_last_n_come_as_messages_after_joined() {
    let (_cluster, mut client) = node_and_client().await;
    for n in 1..=5 {
        client.publish("a", json!(n)).await;
    }
    let joined = client.join_with(json!({"room": "a", "history": 2})).await;
    assert_eq!(split(&joined["cursor"]).1, 3, "the cursor before the first of the following messages: {joined}");
    assert_eq!(client.data(2).await, [json!(4), json!(5)]);
    client.publish("a", json!(6)).await;
    assert_eq!(client.data(1).await, [json!(6)]);
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn asking_for_more_history_than_exists_returns_all_of_it() {
    let (_cluster, mut client) = node_and_client().await;
    client.publish("a", json!(1)).await;
    let joined = client.join_with(json!({"room": "a", "history": 50})).await;
    assert!(joined.get("gap").is_none(), "{joined}");
    assert_eq!(client.data(1).await, [json!(1)]);
}

#[tokio::test]
async fn without_echo_only_messages_of_others_are_delivered() {
    let (cluster, mut client) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    client.join_with(json!({"room": "a", "echo": false})).await;
    client.publish("a", json!("own")).await;
    other.publish("a", json!("other")).await;
    assert_eq!(client.message().await["data"], "other");
    assert!(client.so_far().await.is_empty());
}

#[tokio::test]
async fn messages_of_excluded_sessions_are_delivered_neither_live_nor_on_resume() {
    let (cluster, mut earlier) = node_and_client().await;
    let mut other = Client::connect(cluster.address(0)).await;
    let start = earlier.join("a").await["cursor"].clone();
    earlier.publish("a", json!("own, missed")).await;
    other.publish("a", json!("other, missed")).await;
    let mut later = Client::connect(cluster.address(0)).await;
    let join = json!({"room": "a", "since": start, "echo": false, "exclude": [earlier.session()]});
    assert_eq!(later.join_with(join).await["resumed"], true);
    earlier.publish("a", json!("own, live")).await;
    other.publish("a", json!("other, live")).await;
    assert_eq!(later.data(2).await, [json!("other, missed"), json!("other, live")]);
    assert!(later.so_far().await.is_empty());
}

#[tokio::test]
async fn a_session_cannot_join_more_rooms_than_its_limit() {
    let cluster = one_node_with("[limits]\nrooms_per_session = 2\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    assert_eq!(client.welcome["limits"]["rooms"], 2);
    client.join("a").await;
    client.join("b").await;
    assert_eq!(client.refused(json!({"type": "join", "room": "c"})).await, "room_limit");
    client.join("a").await;
    client.leave("a").await;
    client.join("c").await;
}

#[tokio::test]
async fn messages_of_a_room_without_history_have_no_cursor() {
    let cluster = one_node_with("[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n").await;
    let mut client = Client::connect(cluster.address(0)).await;
    let joined = client.join("typing:1").await;
    assert!(joined.get("cursor").is_none(), "{joined}");
    let published = client.publish("typing:1", json!("x")).await;
    assert!(published.get("cursor").is_none(), "{published}");
    let message = client.message().await;
    assert!(message.get("cursor").is_none() && message["data"] == "x", "{message}");
    assert_eq!(client.refused(json!({"type": "history", "room": "typing:1"})).await, "history_off");
    let other: Value = client.join("chat").await;
    assert!(other["cursor"].is_string(), "the rule applies to its own rooms only: {other}");
}
