//! Joins that are overtaken: by messages, by a second join, by a leave, by another member's join.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::rng::Rng;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::{Client, Cluster, http};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::info;
use crate::fixtures::{one_node_with, publish_numbers, split};
use crate::sentences::KEEP_ALL;

/// Enough for messages to come between the steps of a rejoin many times.
const REJOINS: usize = 50;

/// A second join dropped the member's cursor while the members were listed: messages that came meanwhile were not delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejoin_with_presence_skipped_messages_that_came_during_the_listing() {
    let cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let (epoch, start) = split(&member.join("busy").await["cursor"]);
    let enough = Arc::new(AtomicBool::new(false));
    let (address, stop) = (cluster.address(1), Arc::clone(&enough));
    let traffic = tokio::spawn(async move {
        let batch = json!(vec![json!({"room": "busy", "data": 1}); 20]);
        let mut last = Value::Null;
        while !stop.load(Ordering::Relaxed) {
            let reply = http::post(address, "/v1/publish", &batch).send().await.expect(200);
            last = reply[19]["cursor"].clone();
        }
        last
    });
    for _ in 0..REJOINS {
        let joined = member.join_with(json!({"room": "busy", "presence": true})).await;
        assert_eq!(split(&joined["cursor"]).0, epoch, "{joined}");
    }
    enough.store(true, Ordering::Relaxed);
    let (_, last) = split(&traffic.await.expect("the publisher ends by itself"));
    let mut at = start;
    while at < last {
        let message = member.message().await;
        assert_eq!(split(&message["cursor"]), (epoch.clone(), at + 1), "a hole or a repeat: {message}");
        at += 1;
    }
    assert!(at - start > REJOINS as u64, "there was traffic between the rejoins: {at}");
    assert!(member.so_far().await.iter().all(|frame| frame.kind() != "message"), "nothing is repeated");
}

/// Sends two commands while Redis is stopped, lets it continue, and returns the kinds of both answers.
async fn answers_to_both(cluster: &mut Cluster, client: &mut Client, commands: [Value; 2]) -> [String; 2] {
    cluster.redis().signal("STOP");
    for command in &commands {
        client.send(command.clone()).await;
    }
    let mut frames = client.so_far().await; // the gateway has both before Redis answers anything
    cluster.redis().signal("CONT");
    let answers = commands.map(|command| command["id"].clone());
    while !answers.iter().all(|id| frames.iter().any(|frame| &frame.json["id"] == id)) {
        frames.push(client.next().await);
    }
    answers.map(|id| {
        let mut of_id = frames.iter().filter(|frame| frame.json["id"] == id);
        let answer = &of_id.next().expect("the loop ended with an answer for each").json;
        assert_eq!(of_id.next(), None, "one answer for {id}");
        match answer["type"].as_str() {
            Some("error") => answer["code"].as_str().unwrap_or_default().to_owned(),
            kind => kind.unwrap_or_default().to_owned(),
        }
    })
}

/// The ids are beyond those that `Client` uses itself.
fn join(id: u64, room: &str) -> Value {
    json!({"type": "join", "id": id, "room": room})
}

fn leave(id: u64, room: &str) -> Value {
    json!({"type": "leave", "id": id, "room": room})
}

/// A second join replaced the first one, which was still waiting, and the first one was never answered.
#[tokio::test]
async fn a_join_overtaken_by_another_while_the_room_was_subscribed_got_no_answer() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    let answers = answers_to_both(&mut cluster, &mut client, [join(901, "new"), join(902, "new")]).await;
    assert_eq!(answers[1], "joined");
    assert!(["not_joined", "joined"].contains(&answers[0].as_str()), "{answers:?}");
}

#[tokio::test]
async fn a_join_overtaken_by_a_leave_while_the_room_was_subscribed_got_no_answer() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    let answers = answers_to_both(&mut cluster, &mut client, [join(901, "new"), leave(902, "new")]).await;
    assert_eq!(answers, ["not_joined", "left"]);
    assert_eq!(client.refused(json!({"type": "leave", "room": "new"})).await, "not_joined", "it is not in the room");
}

/// The room was let go, and the join that waited for its subscription with it.
#[tokio::test]
async fn a_join_that_was_left_while_redis_was_away_got_no_answer() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    cluster.redis().signal("STOP");
    for command in [join(901, "new"), join(902, "new"), leave(903, "new")] {
        client.send(command).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 3 {
        let frame = client.next().await.json;
        answered.push((frame["id"].clone(), frame.get("code").unwrap_or(&frame["type"]).clone()));
    }
    let of = |id: u64, answer: &str| (json!(id), json!(answer));
    assert_eq!(answered, [of(901, "not_joined"), of(902, "not_joined"), of(903, "left")]);
    cluster.redis().signal("CONT");
}

#[tokio::test]
async fn a_resume_overtaken_by_a_leave_while_history_was_read_got_no_answer() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let last = publish_numbers(&cluster, "old", 0, 5).await;
    let since = format!("{}.1", split(&json!(last)).0);
    let mut client = Client::connect(cluster.address(0)).await;
    // The node follows the room from here on. Older messages are not in its memory and must be read from Redis.
    client.join("old").await;
    client.leave("old").await;
    let mut resume = join(901, "old");
    resume["since"] = json!(since);
    let answers = answers_to_both(&mut cluster, &mut client, [resume, leave(902, "old")]).await;
    assert_eq!(answers, ["not_joined", "left"]);
}

/// The second join began at the latest message, and nothing told the client of the messages after the first one's `since`.
#[tokio::test]
async fn a_join_without_since_that_overtook_one_with_since_skipped_its_messages() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let last = publish_numbers(&cluster, "old", 0, 50).await;
    let epoch = split(&json!(last)).0;
    let missed: Vec<Value> = (10..50).map(|n| json!(n)).collect();
    // The first join waits for the subscription of the room, and after a while for history.
    for is_followed in [false, true] {
        for options in [json!({}), json!({"history": 1}), json!({"presence": true})] {
            let mut client = Client::connect(cluster.address(0)).await;
            if is_followed {
                client.join("old").await;
                client.leave("old").await;
            }
            let (mut first, mut second) = (join(901, "old"), options);
            first["since"] = json!(format!("{epoch}.10"));
            (second["type"], second["id"], second["room"]) = (json!("join"), json!(902), json!("old"));
            cluster.redis().signal("STOP");
            client.send(first).await;
            client.send(second.clone()).await;
            client.send(json!({"type": "ping"})).await;
            client.take("pong").await;
            cluster.redis().signal("CONT");
            let joined = client.take("joined").await.json;
            let id = joined["id"].clone();
            assert!(id == 902 || id == 901, "{joined}");
            assert_eq!(
                (&joined["cursor"], &joined["resumed"]),
                (&json!(format!("{epoch}.10")), &json!(true)),
                "{second}"
            );
            assert_eq!(client.data(missed.len()).await, missed, "{second}");
            client.close().await;
        }
    }
}

/// Messages of 60 kB: more than the outbox and what the kernel holds for an unread socket (10 MiB at most by its defaults).
const LONG_HISTORY: usize = 300;

/// The list of members was made before the history was sent, and member events began after it: a member that came in
/// between was in neither.
#[tokio::test]
async fn a_member_that_came_during_a_join_with_history_was_not_announced() {
    let cluster = one_node_with(KEEP_ALL).await;
    let item = json!({"room": "long", "data": "x".repeat(60_000)});
    for _ in 0..LONG_HISTORY / 15 {
        http::post(cluster.address(0), "/v1/publish", &json!(vec![item.clone(); 15])).send().await.expect(200);
    }
    let mut member = Client::connect(cluster.address(0)).await;
    let joined = member.join_with(json!({"room": "long", "presence": true, "history": LONG_HISTORY})).await;
    // It has read no history yet, so its join cannot be complete.
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("long").await;
    let listed = joined["members"].as_array().expect("a join with presence lists members");
    assert!(listed.iter().all(|one| one["user"] != json!(other.session())), "{joined}");
    let event = member.take("member_joined").await.json;
    assert_eq!(event["member"]["user"], json!(other.session()), "{event}");
    other.close().await;
    let event = member.take("member_left").await.json;
    assert_eq!(event["room"], "long", "{event}");
}

/// Rounds of joins that overtake each other.
const ROUNDS: usize = 150;
/// What one of these joins asks for; `since` stands for the last cursor that the client has had.
const WISHES: [&[&str]; 7] =
    [&[], &["presence"], &["history"], &["since"], &["presence", "history"], &["presence", "since"], &["old"]];

/// A member of a busy room joins it again and again, two or three times in a row and without waiting for the answers.
/// Every message comes once and in order, and each `joined` says where the member stands.
async fn joins_that_overtake_each_other(delay: Duration) {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(2, addresses).config(KEEP_ALL).start().await;
    proxy.set(Fault::Delay { least: delay, jitter: delay });
    let mut member = Client::connect(cluster.address(0)).await;
    let (epoch, start) = split(&member.join("busy").await["cursor"]);
    let enough = Arc::new(AtomicBool::new(false));
    let (address, stop) = (cluster.address(1), Arc::clone(&enough));
    let traffic = tokio::spawn(async move {
        let (batch, mut last) = (json!(vec![json!({"room": "busy", "data": 1}); 5]), Value::Null);
        while !stop.load(Ordering::Relaxed) {
            let reply = http::post(address, "/v1/publish", &batch).send().await.expect(200);
            last = reply[4]["cursor"].clone();
        }
        last
    });
    let mut rng = Rng::new(7);
    let mut at = start;
    for round in 0..ROUNDS {
        let count = 2 + rng.below(2) as usize;
        for n in 0..count {
            let mut command = json!({"type": "join", "room": "busy", "id": 1_000_000 + 10 * round + n});
            for wish in WISHES[rng.below(WISHES.len() as u64) as usize] {
                match *wish {
                    "presence" => command["presence"] = json!(true),
                    "history" => command["history"] = json!(3),
                    "old" => command["since"] = json!(format!("{epoch}.{start}")),
                    _ => command["since"] = json!(format!("{epoch}.{at}")),
                }
            }
            member.send(command).await;
        }
        // Until the last one is answered.
        let last = json!(1_000_000 + 10 * round + count - 1);
        loop {
            let frame = member.next().await.json;
            at = follows(&frame, &epoch, at);
            if frame["id"] == last {
                assert_eq!(frame["type"], "joined", "{frame}");
                break;
            }
        }
    }
    enough.store(true, Ordering::Relaxed);
    let (_, last) = split(&traffic.await.expect("the publisher ends by itself"));
    while at < last {
        let frame = member.next().await.json;
        at = follows(&frame, &epoch, at);
    }
    assert!(at - start > ROUNDS as u64, "there was traffic between the joins: {at}");
}

/// The offset of the member after a frame.
fn follows(frame: &Value, epoch: &str, at: u64) -> u64 {
    match frame["type"].as_str() {
        Some("message") => {
            assert_eq!(split(&frame["cursor"]), (epoch.to_owned(), at + 1), "a hole or a repeat: {frame}");
            at + 1
        }
        Some("joined") => {
            assert_eq!(split(&frame["cursor"]), (epoch.to_owned(), at), "{frame}");
            at
        }
        Some("error") => {
            assert_eq!(frame["code"], "not_joined", "{frame}");
            at
        }
        _ => at,
    }
}

/// The cursor of a member was in the task of its join: a join that replaced another began at the room's head, and
/// one with `history` anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_overtook_each_other_lost_and_repeated_messages() {
    joins_that_overtake_each_other(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_overtook_each_other_lost_and_repeated_messages_with_redis_far_away() {
    joins_that_overtake_each_other(Duration::from_millis(10)).await;
}

/// Clients that join in one moment, as after a loss of a node.
const CROWD: usize = 200;

/// Half of a crowd was refused with a word that blamed Redis, when only the connections for reads were busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_join_with_presence_read_the_list_of_members_for_itself() {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let proxy = Proxy::before(redis.address()).await;
    let cluster = Cluster::over_addresses(1, vec![format!("redis://{}", proxy.address)]).start().await;
    let mut clients = join_all((0..CROWD).map(|_| Client::connect(cluster.address(0)))).await;
    let before = info(&redis, "cmdstat_hgetall:calls=").await;
    proxy.set(Fault::Delay { least: Duration::from_millis(20), jitter: Duration::ZERO });
    let joins = clients.iter_mut().map(|client| client.join_with(json!({"room": "crowd", "presence": true})));
    for joined in join_all(joins).await {
        assert_eq!(joined["type"], "joined", "{joined}");
    }
    let listings = info(&redis, "cmdstat_hgetall:calls=").await - before;
    assert!(listings < CROWD as u64 / 4, "{listings} listings for {CROWD} joins");
}
