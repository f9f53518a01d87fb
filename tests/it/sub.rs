//! `fanfare sub` over every transport: what it prints, where it goes on after a break, what it says and how it ends.
//! The same sentences for all of them, each against real nodes.

use std::net::SocketAddr;
use std::time::Duration;

use fanfare_tests::cluster::binary;
use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::process::{Launch, Process};
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, eventually_within, patience, patient};
use fanfare_tests::{Client, Cluster, http};
use serde_json::{Value, json};

use crate::fixtures::one_node;
use crate::sentences::KEEP_ALL;

/// Every line that is not a message is on standard error; both stand in one log.
struct Sub {
    process: Process,
    _scratch: Scratch,
}

impl Sub {
    /// Starts one, which goes on until it is dropped.
    fn start(transport: &str, address: SocketAddr, args: &[&str]) -> Self {
        let scratch = Scratch::new();
        let process = command(transport, address, args).start(scratch.path());
        Self { process, _scratch: scratch }
    }

    /// The messages it has printed.
    fn printed(&self) -> Vec<String> {
        self.process.log().lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
    }

    /// Their `data`, which are numbers.
    fn numbers(&self) -> Vec<u64> {
        let data = |line: &String| serde_json::from_str::<Value>(line).expect("a message is JSON")["data"].as_u64();
        self.printed().iter().map(|line| data(line).expect("data is a number")).collect()
    }

    /// Waits until it has said this.
    async fn says(&self, what: &str) {
        self.says_within(patience(), what).await;
    }

    async fn says_within(&self, limit: Duration, what: &str) {
        eventually_within(limit, &format!("sub says {what:?}"), async || self.process.log().contains(what)).await;
    }

    /// Waits until it has printed this number, and gives all.
    async fn number(&self, last: u64) -> Vec<u64> {
        eventually(&format!("sub prints {last}"), async || self.numbers().contains(&last)).await;
        self.numbers()
    }
}

fn command(transport: &str, address: SocketAddr, args: &[&str]) -> Launch {
    let url = format!("http://{address}");
    Launch::new("fanfare", binary()).args(["sub", "--transport", transport, "--url", &url]).args(args)
}

/// Publishes a number and gives the cursor.
async fn publish(address: SocketAddr, room: &str, n: u64) -> String {
    let reply = http::post(address, &format!("/v1/rooms/{room}"), &json!(n)).send().await.expect(200);
    reply["cursor"].as_str().expect("the room keeps history").to_owned()
}

async fn publish_all(address: SocketAddr, room: &str, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        publish(address, room, n).await;
    }
}

/// A short poll's pace follows the room's: with a message of this moment the next poll comes within seconds.
async fn begin(address: SocketAddr, room: &str) -> String {
    publish(address, room, 0).await
}

async fn messages_are_printed_as_they_came(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let rooms = ["chat:1", "x/y,z"];
    let since: Vec<String> = [begin(address, "chat%3A1").await, begin(address, "x%2Fy%2Cz").await].into();
    let mut member = Client::connect(address).await;
    for (room, since) in rooms.iter().zip(&since) {
        member.join_with(json!({"room": room, "since": since})).await;
    }
    let sub = Sub::start(transport, address, &[rooms[0], rooms[1], "--since", &since.join("~")]);
    sub.says("joined chat:1").await;
    sub.says("joined x/y,z").await;
    let odd = [
        "12345678901234567890",
        "{ \"a\" : 1.0, \"b\": [ ] }",
        r#""\u00e9é\n\t\"data:x""#,
        "null",
        "{\"type\":\"close\"}",
    ];
    for (n, data) in odd.iter().enumerate() {
        let path = format!("/v1/rooms/{}?event=e", ["chat%3A1", "x%2Fy%2Cz"][n % 2]);
        http::call("POST", address, &path)
            .header("content-type", "application/json")
            .body(*data)
            .send()
            .await
            .expect(200);
    }
    let mut expected = Vec::new();
    for _ in odd {
        expected.push(member.take("message").await.text);
    }
    eventually("all are printed", async || sub.printed().len() == odd.len()).await;
    // A room has an order, two rooms have none.
    let of = |lines: &[String], room: &str| -> Vec<String> {
        lines.iter().filter(|line| line.contains(&format!(r#""room":"{room}""#))).cloned().collect()
    };
    for room in rooms {
        assert_eq!(of(&sub.printed(), room), of(&expected, room));
    }
}

/// A room with a comma, which no path can name.
async fn it_goes_on_when_its_node_is_killed(transport: &str) {
    let mut cluster = Cluster::over_redis(2).config(KEEP_ALL).start().await;
    let nginx = Nginx::before(&cluster, Version::New).await;
    let since = begin(cluster.address(0), "a%2Cb").await;
    let sub = Sub::start(transport, nginx.address, &["a,b", "--since", &since]);
    sub.says("joined a,b").await;
    let mut next = 1;
    // Whichever of the two it is at, it loses that one in one of the rounds.
    for round in 0..4 {
        let (dies, stays) = (round % 2, (round + 1) % 2);
        let address = cluster.address(stays);
        publish_all(address, "a%2Cb", next..next + 30).await;
        cluster.nodes[dies].kill();
        publish_all(address, "a%2Cb", next + 30..next + 60).await;
        cluster.nodes[dies].restart().await;
        next += 60;
        let numbers = sub.number(next - 1).await;
        assert_eq!(numbers, (1..next).collect::<Vec<_>>(), "round {round}: {}", sub.process.log());
    }
}

async fn it_leaves_a_draining_node_and_comes_back(transport: &str) {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let address = cluster.address(0);
    let since = begin(address, "a").await;
    let sub = Sub::start(transport, address, &["a", "--since", &since]);
    sub.says("joined a").await;
    publish_all(address, "a", 1..=10).await;
    sub.number(10).await;
    cluster.nodes[0].terminate();
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
    sub.says("reconnecting in").await;
    cluster.nodes[0].restart().await;
    publish_all(address, "a", 11..=20).await;
    // The longest wait of the client's own, and of Retry-After.
    eventually_within(patient(Duration::from_secs(30)), "sub is back", async || sub.numbers().contains(&20)).await;
    assert_eq!(sub.numbers(), (1..=20).collect::<Vec<_>>(), "{}", sub.process.log());
}

async fn it_waits_for_a_backplane_that_is_away(transport: &str) {
    let mut cluster = Cluster::over_redis(1).start().await;
    let address = cluster.address(0);
    cluster.redis().kill();
    eventually("the node has noticed", async || {
        http::post(address, "/v1/rooms/a", &json!(0)).send().await.status == 503
    })
    .await;
    let mut sub = Sub::start(transport, address, &["a"]);
    // Sessions open and their joins wait; what has no session is told to come again.
    if ["sse", "poll", "short-poll"].contains(&transport) {
        sub.says("reconnecting in").await;
    }
    cluster.redis().start_empty().await;
    // `retry:` is at most 15 s.
    sub.says_within(patient(Duration::from_secs(40)), "joined a").await;
    // The connection for publishes may be a moment behind the one that joins.
    http::post(address, "/v1/rooms/a?buffer=5s", &json!(0)).send().await.expect(200);
    // The pace of short polling in a room that was silent for ever: 30 s and a fifth.
    eventually_within(patient(Duration::from_secs(40)), "sub prints it", async || sub.numbers() == [0]).await;
    assert!(sub.process.is_running());
}

async fn a_gap_is_told(transport: &str) {
    let cluster = Cluster::embedded()
        .config("[[rooms]]\nmatch = \"*\"\nhistory = { messages = 5, ttl = \"1h\" }\n")
        .start()
        .await;
    let address = cluster.address(0);
    let since = begin(address, "a").await;
    publish_all(address, "a", 1..=40).await;
    let sub = Sub::start(transport, address, &["a", "--since", &since]);
    let numbers = sub.number(40).await;
    let missed = numbers[0] - 1;
    assert!(missed > 0 && numbers == (numbers[0]..=40).collect::<Vec<_>>(), "{numbers:?}");
    sub.says(&format!("gap: {missed} messages are missing")).await;
}

async fn the_last_messages_come_first(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    publish_all(address, "a", 1..=10).await;
    let sub = Sub::start(transport, address, &["a", "--history", "3"]);
    assert_eq!(sub.number(10).await, [8, 9, 10]);
    publish(address, "a", 11).await;
    assert_eq!(sub.number(11).await, [8, 9, 10, 11]);
}

async fn what_no_retry_can_mend_ends_it(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    for (args, why) in [(&["$secret"][..], "room_invalid"), (&["a", "--since", "nonsense"], "bad_request")] {
        let output = command(transport, address, args).run().await;
        assert_eq!((output.code, &*output.stdout), (Some(1), ""), "{args:?}: {output:?}");
        assert!(output.stderr.contains(why), "{args:?}: {output:?}");
    }
}

async fn ctrl_c_and_a_reader_that_is_gone_end_it_well(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let since = begin(address, "a").await;
    let mut sub = Sub::start(transport, address, &["a", "--since", &since]);
    sub.says("joined a").await;
    sub.process.signal("INT");
    assert_eq!(sub.process.exit(patience()).await.code(), Some(0));
    let pipeline = format!(
        "set -o pipefail; {} sub --transport {transport} --url http://{address} a --since {since} | head -n 1",
        binary().display()
    );
    let scratch = Scratch::new();
    let mut pipeline = Launch::new("bash", "bash").args(["-c", &pipeline]).start(scratch.path());
    // It notices by the message after the one that `head` was content with.
    let mut n = 0;
    eventually("the pipeline has ended", async || {
        n += 1;
        publish(address, "a", n).await;
        !pipeline.is_running()
    })
    .await;
    assert_eq!(pipeline.exit(patience()).await.code(), Some(0), "{}", pipeline.log());
    assert_eq!(pipeline.log().matches("\"message\"").count(), 1, "{}", pipeline.log());
}

/// Polls are one member by what they repeat, and are refused once that user is sent away.
async fn a_refused_user_polls_no_more(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let since = begin(address, "a").await;
    let mut sub = Sub::start(transport, address, &["a", "--since", &since]);
    let mut presence = Value::Null;
    eventually("sub is a member", async || {
        presence = http::get(address, "/v1/rooms/a/presence").send().await.expect(200);
        presence["count"] == 1
    })
    .await;
    let user = presence["members"][0]["user"].as_str().expect("one member");
    http::delete(address, &format!("/v1/users/{user}")).send().await;
    // Whatever a waiting poll does about it, the next one is refused.
    publish(address, "a", 1).await;
    assert_eq!(sub.process.exit(patience()).await.code(), Some(1), "{}", sub.process.log());
    sub.says("refused with 403").await;
}

async fn a_kick_ends_it(transport: &str) {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let mut sub = Sub::start(transport, address, &["a", "b"]);
    sub.says("joined b").await;
    let presence = http::get(address, "/v1/rooms/b/presence").send().await.expect(200);
    let user = presence["members"][0]["user"].as_str().expect("one member").to_owned();
    http::delete(address, &format!("/v1/rooms/a/members/{user}")).send().await;
    sub.says("a: kicked").await;
    http::post(address, "/v1/rooms/b", &json!(1)).send().await.expect(200);
    assert_eq!(sub.number(1).await, [1], "the other room goes on");
    http::delete(address, &format!("/v1/users/{user}")).send().await;
    assert_eq!(sub.process.exit(patience()).await.code(), Some(1), "{}", sub.process.log());
    assert!(sub.process.log().contains("4403"), "{}", sub.process.log());
}

#[tokio::test]
async fn a_room_without_history_is_followed_live_and_not_polled() {
    let cluster = Cluster::embedded().config("[[rooms]]\nmatch = \"*\"\nhistory = \"off\"\n").start().await;
    let address = cluster.address(0);
    for transport in ["ws", "sse", "stream"] {
        let sub = Sub::start(transport, address, &["a"]);
        sub.says("joined a at no cursor").await;
        http::post(address, "/v1/rooms/a", &json!(7)).send().await.expect(200);
        assert_eq!(sub.number(7).await, [7], "{transport}");
    }
    for transport in ["poll", "short-poll"] {
        let output = command(transport, address, &["a"]).run().await;
        assert!(output.code == Some(1) && output.stderr.contains("history_off"), "{transport}: {output:?}");
    }
}

#[tokio::test]
async fn polls_of_more_rooms_than_a_url_holds_go_by_post() {
    let cluster = one_node().await;
    let address = cluster.address(0);
    let rooms: Vec<String> = (0..60).map(|n| format!("{n:0>200}")).collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    let sub = Sub::start("poll", address, &rooms);
    sub.says(&format!("joined {}", rooms[59])).await;
    for n in [0, 59] {
        http::post(address, &format!("/v1/rooms/{}", rooms[n]), &json!(n)).send().await.expect(200);
        sub.number(n as u64).await;
    }
    assert_eq!(sub.numbers(), [0, 59]);
}

macro_rules! over {
    ($module:ident, $transport:literal) => {
        mod $module {
            const TRANSPORT: &str = $transport;

            over!(@ messages_are_printed_as_they_came);
            over!(@ it_goes_on_when_its_node_is_killed);
            over!(@ it_leaves_a_draining_node_and_comes_back);
            over!(@ it_waits_for_a_backplane_that_is_away);
            over!(@ a_gap_is_told);
            over!(@ the_last_messages_come_first);
            over!(@ what_no_retry_can_mend_ends_it);
            over!(@ ctrl_c_and_a_reader_that_is_gone_end_it_well);
        }
    };
    (@ $sentence:ident) => {
        #[tokio::test]
        async fn $sentence() {
            super::$sentence(TRANSPORT).await;
        }
    };
}

over!(ws, "ws");
over!(sse, "sse");
over!(stream, "stream");
over!(poll, "poll");
over!(short_poll, "short-poll");

#[tokio::test]
async fn a_kick_ends_it_over_every_transport() {
    for transport in ["ws", "sse", "stream"] {
        a_kick_ends_it(transport).await;
    }
    for transport in ["poll", "short-poll"] {
        a_refused_user_polls_no_more(transport).await;
    }
}
