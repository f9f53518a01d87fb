//! Commands of sessions on one-way transports: by POST to their secret address, at any node.

use std::time::Duration;

use fanfare_tests::wait::{eventually, eventually_within, patient};
use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient, http};
use serde_json::{Value, json};

use super::Entry;
use crate::fixtures::{one_node, split};

async fn on_both(cluster: &Cluster, room: &str) -> Vec<TransportClient> {
    let mut clients = Vec::new();
    for transport in Transport::ONE_WAY {
        clients.push(TransportClient::join(cluster.address(0), transport, &RoomRequest::of(&[room])).await);
    }
    clients
}

#[tokio::test]
async fn every_command_is_answered_with_or_without_an_id() {
    let cluster = one_node().await;
    for mut client in on_both(&cluster, "a").await {
        let name = client.transport.name();
        let room = client.session();
        for (command, reply) in [
            (json!({"type": "join", "room": room, "since": "another-epoch.1"}), "joined"),
            (json!({"type": "presence", "room": room}), "presence"),
            (json!({"type": "publish", "room": room, "data": 1}), "published"),
            (json!({"type": "history", "room": room}), "history"),
            (json!({"type": "ping"}), "pong"),
            (json!({"type": "leave", "room": room}), "left"),
            (json!({"type": "leave", "room": room}), "error"),
            (json!({"type": "dance"}), "error"),
            (json!({"type": "join", "room": "$b"}), "error"),
            (json!({"type": "publish", "room": room}), "error"),
        ] {
            let with = client.ask(command.clone()).await;
            assert_eq!(with["type"], reply, "{name} {command}: {with}");
            if !matches!(reply, "joined" | "left") {
                let without = client.command(client.address, &command).await.expect(200);
                assert_eq!((&without["type"], without.get("id")), (&json!(reply), None), "{name} {command}: {without}");
            }
        }
        let frames: Vec<String> = kinds(&mut client, "left").await;
        assert_eq!(frames, ["joined", "message", "message", "left"], "{name}: other replies are only in the answer");
    }
}

/// The kinds of all frames up to the first of this one.
async fn kinds(client: &mut TransportClient, last: &str) -> Vec<String> {
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != last) {
        kinds.push(client.next().await.kind().to_owned());
    }
    kinds
}

#[tokio::test]
async fn an_array_is_answered_by_an_array_in_its_order() {
    let cluster = one_node().await;
    for mut client in on_both(&cluster, "a").await {
        let room = client.session();
        let mut commands = vec![json!({"type": "join", "id": 7, "room": room})];
        commands.extend((0..97).map(|n| json!({"type": "publish", "id": 100 + n, "room": room, "data": n})));
        commands.push(json!({"type": "dance", "id": 8}));
        commands.push(json!({"type": "ping"}));
        let replies = client.command(client.address, &json!(commands)).await.expect(200);
        let replies = replies.as_array().expect("an array").clone();
        assert_eq!(replies.len(), 100);
        assert_eq!((&replies[0]["type"], &replies[0]["id"]), (&json!("joined"), &json!(7)));
        assert_eq!(split(&replies[0]["cursor"]).1, 0, "the join is done before the commands after it");
        for (n, reply) in replies[1..98].iter().enumerate() {
            assert_eq!((&reply["type"], &reply["id"]), (&json!("published"), &json!(100 + n)), "{reply}");
            assert_eq!(split(&reply["cursor"]).1, n as u64 + 1, "the order of the array is the order in the room");
        }
        assert_eq!((&replies[98]["code"], &replies[98]["id"]), (&json!("unknown_type"), &json!(8)));
        assert_eq!(replies[99], json!({"type": "pong"}));
        assert_eq!(
            client.data(97).await,
            (0..97).map(|n| json!(n)).collect::<Vec<_>>(),
            "a member gets its own messages"
        );
    }
}

#[tokio::test]
async fn a_publish_right_after_a_posted_join_is_delivered() {
    let cluster = one_node().await;
    for mut client in on_both(&cluster, "a").await {
        for n in 0..50 {
            let room = format!("fresh:{}:{n}", client.transport.name().to_lowercase());
            let joined = client.ask(json!({"type": "join", "room": room})).await;
            let frame = client.take("joined").await.json;
            assert_eq!((&frame["room"], &frame["cursor"]), (&json!(room), &joined["cursor"]));
            super::publish(cluster.address(0), &room, &json!(n)).await;
            assert_eq!(client.data(1).await, [json!(n)]);
        }
    }
}

#[tokio::test]
async fn a_body_without_a_valid_command_is_a_bad_request() {
    let cluster = one_node().await;
    for client in on_both(&cluster, "a").await {
        let hundred_and_one: Vec<Value> = (0..101).map(|_| json!({"type": "ping"})).collect();
        for body in [json!([]), json!(hundred_and_one), json!("ping"), json!(7), json!(null)] {
            assert_eq!(client.command(client.address, &body).await.problem(400), "bad_request", "{body}");
        }
        for text in ["", "{", "{\"type\":\"ping\"} {}", "\u{feff}", "[{\"type\":\"ping\"},]"] {
            let call = http::call("POST", client.address, client.post()).header("content-type", "application/json");
            assert_eq!(call.body(text).send().await.problem(400), "bad_request", "{text:?}");
        }
        let get = http::get(client.address, client.post()).send().await;
        assert_eq!(get.problem(405), "method_not_allowed");
        let large = json!({"type": "publish", "room": "a", "data": "x".repeat(65_535)});
        let reply = client.command(client.address, &large).await.expect(200);
        assert_eq!(reply["code"], "message_too_large", "{reply}");
    }
}

#[tokio::test]
async fn a_message_shows_the_session_id_and_never_the_secret_address() {
    let cluster = one_node().await;
    let mut witness = Client::connect(cluster.address(0)).await;
    witness.join("a").await;
    for mut client in on_both(&cluster, "a").await {
        client.ask(json!({"type": "publish", "room": "a", "data": 1})).await;
        let message = witness.take("message").await;
        assert_eq!(message.json["from"], json!({"session": client.session()}));
        let secret = client.post().trim_start_matches("/v1/sessions/").to_owned();
        let presence = http::get(cluster.address(0), "/v1/rooms/a/presence").send().await;
        assert!(presence.text.contains(&client.session()), "{}", presence.text);
        for public in [&message.text, &presence.text, &cluster.nodes[0].log()] {
            assert!(!public.contains(&secret), "{public}");
        }
    }
}

/// Commands in an array and one by one, at whichever node the target chooses.
pub(super) async fn posted_commands_arrive_and_their_secret_address_is_never_logged(entry: Entry) {
    let setup = entry.start(Cluster::over_redis(2).flags(&["--log-level", "debug"])).await;
    for (index, transport) in Transport::ONE_WAY.into_iter().enumerate() {
        let mut client = TransportClient::join(setup.target.address(index), transport, &RoomRequest::of(&["a"])).await;
        for n in 0..6 {
            let address = setup.target.address(n);
            let room = format!("{}:{n}", client.session());
            let commands = json!([{"type": "join", "room": room}, {"type": "publish", "room": room, "data": n}]);
            let replies = client.command(address, &commands).await.expect(200);
            assert_eq!(
                (&replies[0]["type"], &replies[1]["type"]),
                (&json!("joined"), &json!("published")),
                "{replies}"
            );
            assert_eq!(client.data(1).await, [json!(n)]);
            assert_eq!(client.ask_at(address, json!({"type": "leave", "room": room})).await["type"], "left");
        }
        let secret = client.post().trim_start_matches("/v1/sessions/").to_owned();
        let gone = format!("{}?x=1", client.post());
        drop(client);
        http::post(setup.target.address(0), &gone, &json!({"type": "ping"})).send().await;
        let mut logs: Vec<String> = setup.cluster.nodes.iter().map(fanfare_tests::Node::log).collect();
        if let Some(nginx) = &setup.nginx {
            eventually("nginx has logged", async || nginx.access_log().contains("/v1/sessions/-")).await;
            logs.extend([nginx.access_log(), nginx.error_log()]);
        }
        assert!(logs.iter().all(|log| !log.contains(&secret)), "{logs:?}");
    }
}

#[tokio::test]
async fn a_post_to_an_unknown_address_is_session_gone() {
    let cluster = one_node().await;
    let mut websocket = Client::connect(cluster.address(0)).await;
    websocket.join("a").await;
    let ping = json!({"type": "ping"});
    for client in on_both(&cluster, "a").await {
        let secret = client.post().trim_start_matches("/v1/sessions/").to_owned();
        let turned: String = secret.chars().rev().collect();
        let longer = format!("{secret}A");
        let shorter = secret[..secret.len() - 1].to_owned();
        for other in [&client.session(), &websocket.session(), &turned, &longer, &shorter, "x", "%00"] {
            let reply = http::post(cluster.address(0), &format!("/v1/sessions/{other}"), &ping).send().await;
            assert_eq!(reply.problem(404), "session_gone", "{other} for {secret}");
        }
        let path = client.post().to_owned();
        drop(client);
        eventually("a session whose stream has ended is gone", async || {
            let reply = http::post(cluster.address(0), &path, &ping).send().await;
            reply.status == 404 && reply.problem(404) == "session_gone"
        })
        .await;
    }
}

#[tokio::test]
async fn any_node_takes_commands_and_sessions_of_a_dead_node_are_gone() {
    let mut cluster = Cluster::over_redis(3).start().await;
    let mut witness = Client::connect(cluster.address(2)).await;
    witness.join("witnessed").await;
    let mut clients = on_both(&cluster, "a").await;
    for client in &mut clients {
        for node in [1, 2, 0] {
            let address = cluster.address(node);
            let room = format!("{}:{node}", client.session());
            assert_eq!(client.ask_at(address, json!({"type": "join", "room": room})).await["type"], "joined");
            assert_eq!(client.take("joined").await.json["room"], json!(room), "the stream has the reply as well");
            client.ask_at(address, json!({"type": "publish", "room": room, "data": node})).await;
            assert_eq!(client.message().await["data"], node);
            let commands =
                json!([{"type": "publish", "room": "witnessed", "data": 1}, {"type": "leave", "room": room}]);
            let replies = client.command(address, &commands).await.expect(200);
            assert_eq!((&replies[0]["type"], &replies[1]["type"]), (&json!("published"), &json!("left")), "{replies}");
            assert_eq!(witness.message().await["from"]["session"], json!(client.session()));
            assert_eq!(client.take("left").await.json["room"], json!(room));
        }
    }
    cluster.nodes[0].kill();
    // A node counts as dead after 10 s without a heartbeat; until then the answer is 503.
    for client in clients {
        eventually_within(patient(Duration::from_secs(20)), "the sessions of a dead node are gone", async || {
            let reply = client.command(cluster.address(1), &json!({"type": "ping"})).await;
            assert!(matches!(reply.status, 404 | 503), "{reply:?}");
            reply.status == 404 && reply.problem(404) == "session_gone"
        })
        .await;
    }
}

#[tokio::test]
async fn the_same_key_posted_twice_publishes_once() {
    let cluster = Cluster::over_redis(2).start().await;
    for mut client in on_both(&cluster, "a").await {
        let key = client.transport.name();
        let command = json!({"type": "publish", "room": "other", "data": key, "key": key});
        let first = client.ask_at(cluster.address(0), command.clone()).await;
        let again = client.ask_at(cluster.address(1), command).await;
        assert_eq!((&first["type"], &first["cursor"]), (&json!("published"), &again["cursor"]), "{again}");
        let history = http::get(cluster.address(0), "/v1/rooms/other/history").send().await.expect(200);
        let messages = history["messages"].as_array().expect("a list");
        assert_eq!(messages.iter().filter(|message| message["data"] == key).count(), 1, "{history}");
    }
}

#[tokio::test]
async fn kicks_and_disconnects_are_reported_in_the_stream() {
    let cluster = Cluster::over_redis(2).start().await;
    for mut client in on_both(&cluster, "a").await {
        let (name, user) = (client.transport.name(), client.session());
        let kick = http::delete(cluster.address(1), &format!("/v1/rooms/a/members/{user}")).send().await;
        assert_eq!(kick.status, 204);
        assert_eq!(client.take("left").await.json["reason"], "kicked", "{name}");
        assert_eq!(http::delete(cluster.address(1), &format!("/v1/users/{user}")).send().await.status, 204);
        let close = client.take("close").await.json;
        assert_eq!((&close["code"], &close["reconnect"]), (&json!(4403), &json!(false)), "{name}: {close}");
        let ended = client.ended().await;
        assert_eq!((ended.code, ended.reason.as_str()), (Some(4403), ""), "{name}");
    }
}

#[tokio::test]
async fn twenty_errors_are_allowed_and_one_more_ends_the_stream() {
    let cluster = one_node().await;
    for mut client in on_both(&cluster, "a").await {
        let errors: Vec<Value> = (0..20).map(|_| json!({"type": "dance"})).collect();
        let replies = client.command(client.address, &json!(errors)).await.expect(200);
        assert_eq!(replies.as_array().map(Vec::len), Some(20));
        client.ask(json!({"type": "ping"})).await;
        client.command(client.address, &json!({"type": "dance"})).await;
        let close = client.take("close").await.json;
        assert_eq!((&close["code"], &close["reconnect"]), (&json!(4429), &json!(false)), "{close}");
    }
}
