//! Member lists that were wrong, or too long for a slow client.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::wait::{eventually, ticks};
use fanfare_tests::{Client, Cluster};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::fixtures::metric;

/// Records members in Redis as the broker's scripts do: from number ARGV[2] to ARGV[3], each with a name of ARGV[4] bytes.
/// Those whose number cannot be divided by ARGV[5] leave again. KEYS: the room's sessions and users; ARGV[1]: its channel, or nothing
/// if the events are lost.
const CHANGE: &str = "local zero = string.char(0) \
    local function change(kind, by, name) \
      redis.call('HINCRBY', KEYS[2], 'U', by) \
      local version = redis.call('HINCRBY', KEYS[2], 'v', 1) \
      if ARGV[1] == '' then return end \
      redis.call('PUBLISH', ARGV[1], string.char(1, kind, 0) .. zero:rep(8) .. struct.pack('>I8', version) \
        .. zero:rep(36) .. struct.pack('>H', #name) .. name) \
    end \
    for i = ARGV[2], ARGV[3] do \
      local session, name = string.format('%012d', i), ('0'):rep(ARGV[4] - #tostring(i)) .. i \
      redis.call('HSET', KEYS[1], session, zero:rep(8) .. '1' .. struct.pack('>H', #name) .. name) \
      change(2, 1, name) \
      if i % ARGV[5] > 0 then redis.call('HDEL', KEYS[1], session) change(3, -1, name) end \
    end \
    return redis.call('HLEN', KEYS[1])";

/// The keys of a room that has a member.
struct Keys {
    sessions: String,
    users: String,
    channel: String,
}

impl Keys {
    async fn of(redis: &Redis, room: &str) -> Self {
        let found = redis.values(&format!("KEYS *:pr:{room}")).await;
        let sessions = found.first().expect("the room has a member").clone();
        let part = |part: &str| sessions.replace(":pr:", &format!(":{part}:"));
        Self { users: part("pu"), channel: part("c"), sessions }
    }

    /// Runs [`CHANGE`] for members with these numbers; `kind` is ARGV[4] and ARGV[5].
    async fn change(&self, redis: &Redis, channel: &str, (first, last): (usize, usize), kind: (usize, usize)) {
        let Self { sessions, users, .. } = self;
        let args = format!("\"{channel}\" {first} {last} {} {}", kind.0, kind.1);
        let reply = redis.command(&format!("EVAL \"{CHANGE}\" 2 {sessions} {users} {args}")).await;
        assert!(reply.starts_with(':'), "{reply}");
    }
}

/// A member's list, as the frames so far make it.
#[derive(Default)]
struct List(BTreeSet<String>);

impl List {
    fn take(&mut self, frame: &Value) {
        let user = |member: &Value| member["user"].as_str().expect("a member has a name").to_owned();
        let listed = frame["members"].as_array().into_iter().flatten().map(user);
        match frame["type"].as_str() {
            Some("joined" | "presence") => self.0 = listed.collect(),
            Some("members") => self.0.extend(listed),
            Some("member_joined") => _ = self.0.insert(user(&frame["member"])),
            Some("member_left") => _ = self.0.remove(&user(&frame["member"])),
            _ => {}
        }
    }

    /// Takes frames until the list has this many members, and no more frames are on their way.
    async fn settle(&mut self, client: &mut Client, count: usize) {
        eventually("the list has all members", async || {
            client.so_far().await.iter().for_each(|frame| self.take(&frame.json));
            self.0.len() == count
        })
        .await;
    }
}

/// While a list was read, a room held back 4,096 events and dropped the later ones: half of the members that joined in a
/// storm missed some for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_storm_during_a_listing_were_missing_for_good() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut first = Client::connect(cluster.address(0)).await;
    first.join("storm").await;
    let keys = Keys::of(cluster.redis(), "storm").await;
    let proxy = Proxy::before(cluster.redis().address()).await;
    proxy.set(Fault::Delay { least: Duration::from_millis(100), jitter: Duration::ZERO });
    let scratch = cluster.scratch();
    let url = format!("redis://{}", proxy.address);
    let far = fanfare_tests::cluster::serve(scratch, "far").args(["--redis", &url]).start(scratch.path());
    let far = fanfare_tests::cluster::Node::ready("far".to_owned(), far, scratch).await;
    let mut members = join_all((0..20).map(|_| Client::connect(far.listen))).await;
    for member in &mut members {
        member.send(json!({"type": "join", "room": "storm", "presence": true})).await;
    }
    let mut pace = ticks(Duration::from_millis(20));
    // 30 times 160 members, of which nine in ten leave again: 9,120 events.
    let storm = async {
        for part in 0..30 {
            pace.tick().await;
            keys.change(cluster.redis(), &keys.channel, (160 * part + 1, 160 * part + 160), (12, 10)).await;
        }
    };
    let lists = members.iter_mut().map(|member| async {
        let mut list = List::default();
        list.settle(member, 480 + 21).await;
    });
    tokio::join!(storm, join_all(lists));
}

/// An event that was lost on its way to a node was missing in its members' lists for good.
#[tokio::test]
async fn a_lost_presence_event_was_missing_for_good() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut list = List::default();
    let mut member = Client::connect(cluster.address(0)).await;
    let joined = member.join_with(json!({"room": "lossy", "presence": true})).await;
    list.take(&joined);
    let keys = Keys::of(cluster.redis(), "lossy").await;
    keys.change(cluster.redis(), "", (1, 1), (12, 1)).await;
    keys.change(cluster.redis(), &keys.channel, (2, 2), (12, 1)).await;
    list.settle(&mut member, 3).await;
    assert!(list.0.contains("000000000001"), "the lost one: {:?}", list.0);
}

/// A member who left while the node's subscriber connections were away stayed in its members' lists until the next member
/// event of the room.
#[tokio::test]
async fn a_presence_event_during_a_reconnect_was_missing_until_the_next_one() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut list = List::default();
    let mut member = Client::connect(cluster.address(0)).await;
    list.take(&member.join_with(json!({"room": "cut", "presence": true})).await);
    let keys = Keys::of(cluster.redis(), "cut").await;
    keys.change(cluster.redis(), &keys.channel, (1, 1), (12, 1)).await;
    list.settle(&mut member, 2).await;
    keys.change(cluster.redis(), "", (2, 2), (12, 1)).await;
    cluster.redis().command("CLIENT KILL TYPE pubsub").await;
    list.settle(&mut member, 3).await;
}

/// The whole list was one frame, larger than the outbox. Whatever came before the client had read it closed the session, on
/// every attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_member_list_closed_a_client_that_reads_slowly() {
    // 12 MB: far more than the outbox (256 KiB) and what the kernel holds for an unread socket.
    const MEMBERS: usize = 6_000;
    let patient = "[limits]\noutbox_seconds = 600\n";
    let mut cluster = Cluster::over_redis(1).config(patient).start().await;
    let mut other = Client::connect(cluster.address(0)).await;
    other.join("long").await;
    let keys = Keys::of(cluster.redis(), "long").await;
    for part in 0..MEMBERS / 100 {
        keys.change(cluster.redis(), "", (100 * part + 1, 100 * part + 100), (2_000, 1)).await;
    }
    let mut slow = Client::connect(cluster.address(0)).await;
    slow.send(json!({"type": "join", "id": 7, "room": "long", "presence": true})).await;
    // It does not read before other frames have come after the list.
    let admin = cluster.nodes[0].admin;
    eventually("the list waits", async || metric(admin, "fanfare_outbox_bytes").await > 10_000.0).await;
    for _ in 0..20 {
        other.leave("long").await;
        other.join("long").await;
    }
    other.leave("long").await;
    let mut list = List::default();
    list.settle(&mut slow, MEMBERS + 1).await;
    let mut question = slow.ask(json!({"type": "presence", "room": "long"})).await;
    assert_eq!(question["count"], MEMBERS + 1);
    let mut asked = List::default();
    asked.take(&question);
    while question["more"] == true {
        question = slow.take("members").await.json;
        asked.take(&question);
    }
    assert_eq!(asked.0, list.0);
}

/// Every join read the list for itself and got a copy of its own: half of a crowd was refused, because the connections for
/// reads were busy, and the node grew by some hundred MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_joined_with_presence_at_once_was_refused() {
    const CROWD: usize = 600;
    let cluster = Cluster::over_redis(1).start().await;
    let mut crowd = join_all((0..CROWD).map(|_| Client::connect(cluster.address(0)))).await;
    let before = cluster.nodes[0].resident_bytes().expect("the node runs");
    for member in &mut crowd {
        member.send(json!({"type": "join", "room": "crowd", "presence": true})).await;
    }
    let lists = crowd.iter_mut().map(|member| async {
        let mut list = List::default();
        list.settle(member, CROWD).await;
    });
    join_all(lists).await;
    let grown = cluster.nodes[0].resident_bytes().expect("the node runs").saturating_sub(before);
    println!("{CROWD} members: {} MiB more", grown >> 20);
    assert!(grown < 100 << 20, "{grown} bytes");
}
