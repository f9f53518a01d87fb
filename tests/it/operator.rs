//! A Redis that refuses this node until an operator has acted: missing rights, another password, keys of another program,
//! no connections left. Clients are told so, the log has Redis's own words, and health says whether publishes succeed.

use fanfare_tests::http::Reply;
use fanfare_tests::redis::Redis;
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Client, Cluster, http};
use serde_json::{Value, json};

use crate::fixtures::metric;
use crate::sentences::KEEP_ALL;

/// The node's user with all rights. The tests are the default user, whom nothing is refused.
const ALL_RIGHTS: &str = "ACL SETUSER node reset on >secret ~* &* +@all";

/// What a client reads if an operator has to act.
const OPERATOR: &str = "the backplane refuses this node; its operator has to act";

/// A node that uses Redis as a user of its own, and has published into a room.
async fn node_as_user(redis: &Redis) -> Cluster {
    redis.values(ALL_RIGHTS).await;
    let url = format!("redis://node:secret@{}", redis.address());
    let cluster = Cluster::over_addresses(1, vec![url]).config(KEEP_ALL).start().await;
    publish(&cluster, "").await.expect(200);
    cluster
}

/// A Redis and such a node; in this order, so that the node ends first.
async fn redis_and_node() -> (Scratch, Redis, Cluster) {
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let cluster = node_as_user(&redis).await;
    (scratch, redis, cluster)
}

async fn publish(cluster: &Cluster, query: &str) -> Reply {
    http::post(cluster.address(0), &format!("/v1/rooms/a{query}"), &json!(1)).send().await
}

async fn read(cluster: &Cluster, path: &str) -> Reply {
    http::get(cluster.address(0), path).send().await
}

fn detail(reply: &Reply) -> (String, Value) {
    (reply.problem(503), reply.json()["detail"].clone())
}

fn operator() -> (String, Value) {
    ("backplane_unavailable".into(), json!(OPERATOR))
}

async fn is_up(cluster: &Cluster) -> bool {
    let admin = cluster.nodes[0].admin;
    let is_up = metric(admin, "fanfare_backplane_up").await > 0.0;
    is_up && http::get(admin, "/readyz?backplane=1").send().await.status == 200
}

/// Whether the log has an ERROR line with all these words.
fn has_error(cluster: &Cluster, words: &[&str]) -> bool {
    let log = cluster.nodes[0].log();
    log.lines().any(|line| line.contains("ERROR") && words.iter().all(|word| line.contains(word)))
}

/// The read was 500 `internal`, and the log said "Extension": the client library keeps neither the code nor the text of what
/// Redis says to a pipeline.
#[tokio::test]
async fn a_refused_read_lost_the_code_and_the_words_of_redis() {
    let scratch = Scratch::new();
    let redis = Redis::start_as("redis", scratch.path(), &["--rename-command", "ZRANGEBYLEX", ""]).await;
    let cluster = node_as_user(&redis).await;
    let stream = redis.values("KEYS fanfare:*:s:a").await.remove(0);
    redis.values(&format!("SET {stream} text")).await;
    for query in ["", "?limit=5"] {
        assert_eq!(detail(&read(&cluster, &format!("/v1/rooms/a/history{query}")).await), operator());
    }
    assert!(has_error(&cluster, &["WRONGTYPE", "wrong kind of value"]), "{}", cluster.nodes[0].log());
    eventually("a line about the next refusal of the class", async || {
        assert_eq!(detail(&read(&cluster, "/v1/rooms?prefix=secret").await), operator());
        has_error(&cluster, &["ERR", "unknown command 'ZRANGEBYLEX'"])
    })
    .await;
    assert!(!cluster.nodes[0].log().contains("secret"), "what Redis repeats of the command is left out");
}

/// The texts of refusals inside scripts were not known, so the publish was 500 `internal`, and one with a buffer was
/// refused at once. One that waited in vain was told that Redis is away.
#[tokio::test]
async fn what_scripts_have_no_right_to_was_a_fault_of_our_own() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    for rule in ["resetkeys ~other", "-xadd"] {
        redis.values(&format!("ACL SETUSER node {rule}")).await;
        assert_eq!(detail(&publish(&cluster, "").await), operator(), "{rule}");
        assert_eq!(detail(&publish(&cluster, "?buffer=1s").await), operator(), "{rule}");
        redis.values(ALL_RIGHTS).await;
        publish(&cluster, "?buffer=5s").await.expect(200);
    }
}

/// It was "away" after a second, while a join was told the cause.
#[tokio::test]
async fn a_poll_of_a_new_room_was_not_told_that_an_operator_has_to_act() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    redis.values("ACL SETUSER node -evalsha").await;
    assert_eq!(detail(&read(&cluster, "/v1/rooms/new/poll?wait=0").await), operator());
}

/// Reads over new connections were "away" without a line of the log, and a join with history got no reply.
#[tokio::test]
async fn a_new_connection_that_redis_refuses_is_told_with_its_cause() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    redis.values("ACL SETUSER node resetpass >other").await;
    publish(&cluster, "").await.expect(200);
    for path in ["/v1/rooms/a/presence", "/v1/rooms/a/history", "/v1/rooms"] {
        assert_eq!(detail(&read(&cluster, path).await), operator(), "{path}");
    }
    let mut member = Client::connect(cluster.address(0)).await;
    let refused = member.ask(json!({"type": "join", "room": "a", "history": 5})).await;
    assert_eq!((&refused["code"], &refused["message"]), (&json!("backplane_unavailable"), &json!(OPERATOR)));
    assert!(has_error(&cluster, &["WRONGPASS", "invalid username-password pair"]), "{}", cluster.nodes[0].log());
}

/// The client library read on after Redis's reply, and reported a broken pipe.
#[tokio::test]
async fn a_redis_with_too_many_clients_was_a_broken_pipe() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    redis.values("CONFIG SET maxclients 1").await;
    assert_eq!(read(&cluster, "/v1/rooms/a/presence").await.problem(503), "backplane_overloaded");
    let log = cluster.nodes[0].log();
    assert!(log.contains("max number of clients reached"), "{log}");
}

/// Clients were told that Redis is away, and the log had one warning for each connection.
#[tokio::test]
async fn connections_that_redis_does_not_let_in_again_are_told_with_their_cause() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    for command in ["ACL SETUSER node resetpass >other", "CLIENT KILL USER node"] {
        redis.values(command).await;
    }
    eventually("publishes are told the cause", async || detail(&publish(&cluster, "").await) == operator()).await;
    assert_eq!(detail(&publish(&cluster, "?buffer=1s").await), operator());
    let mut member = Client::connect(cluster.address(0)).await;
    let refused = member.ask(json!({"type": "join", "room": "new", "presence": true})).await;
    assert_eq!((&refused["code"], &refused["message"]), (&json!("backplane_unavailable"), &json!(OPERATOR)));
    assert!(has_error(&cluster, &["WRONGPASS", "invalid username-password pair"]), "{}", cluster.nodes[0].log());
    assert!(!is_up(&cluster).await);
    redis.values(ALL_RIGHTS).await;
    eventually("publishes succeed again", async || publish(&cluster, "").await.status == 200).await;
    eventually("health is back", async || is_up(&cluster).await).await;
}

/// Health stayed up while every publish was refused: the write that Redis was asked for needed fewer rights than a publish.
#[tokio::test]
async fn health_is_down_for_as_long_as_an_operator_has_to_act() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    for rule in ["-evalsha", "-hincrby", "-xadd", "-publish", "-set", "resetkeys ~other", "resetchannels &other"] {
        redis.values(&format!("ACL SETUSER node {rule}")).await;
        // A buffered publish has a key, for which it needs SET. One that Redis keeps but does not send is acknowledged.
        let reply = publish(&cluster, "?buffer=1s").await;
        assert_eq!(reply.status == 200, ["-publish", "resetchannels &other"].contains(&rule), "{rule}: {}", reply.text);
        eventually(&format!("health says so: {rule}"), async || !is_up(&cluster).await).await;
        for _ in 0..20 {
            publish(&cluster, "").await;
            assert!(!is_up(&cluster).await, "{rule}");
        }
        redis.values(ALL_RIGHTS).await;
        eventually(&format!("health is back without a publish: {rule}"), async || is_up(&cluster).await).await;
    }
}

/// It was up between a late reply and the next.
#[tokio::test]
async fn health_is_down_while_redis_lets_writes_wait() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    redis.values("CLIENT PAUSE 600000 WRITE").await;
    publish(&cluster, "").await.problem(503);
    let admin = cluster.nodes[0].admin;
    // A connection whose commands wait is replaced. The new one was up until the next publish.
    eventually("two new connections", async || {
        assert!(!is_up(&cluster).await);
        publish(&cluster, "").await.problem(503);
        assert!(!is_up(&cluster).await);
        metric(admin, "fanfare_backplane_reconnects_total").await >= 2.0
    })
    .await;
    redis.values("CLIENT UNPAUSE").await;
    eventually("health is back without a publish", async || is_up(&cluster).await).await;
}

/// One room's keys are no reason to take a node out of service.
#[tokio::test]
async fn health_stays_up_if_another_program_has_the_keys_of_one_room() {
    let (_scratch, redis, cluster) = redis_and_node().await;
    let stream = redis.values("KEYS fanfare:*:s:a").await.remove(0);
    redis.values(&format!("SET {stream} text")).await;
    for _ in 0..20 {
        assert_eq!(detail(&publish(&cluster, "").await), operator());
        assert!(is_up(&cluster).await);
    }
}
