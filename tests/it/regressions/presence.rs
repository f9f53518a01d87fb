//! Member lists that were wrong, or too long for a slow client.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_tests::fault::{Fault, Proxy};
use fanfare_tests::redis::Redis;
use fanfare_tests::wait::{eventually, patient, ticks, within_time};
use fanfare_tests::{Client, Cluster};
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

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
pub(super) struct Keys {
    sessions: String,
    users: String,
    pub(super) channel: String,
}

impl Keys {
    pub(super) async fn of(redis: &Redis, room: &str) -> Self {
        let found = redis.values(&format!("KEYS *:pr:{room}")).await;
        let sessions = found.first().expect("the room has a member").clone();
        let part = |part: &str| sessions.replace(":pr:", &format!(":{part}:"));
        Self { users: part("pu"), channel: part("c"), sessions }
    }

    /// Runs [`CHANGE`] for members with these numbers; `kind` is ARGV[4] and ARGV[5].
    pub(super) async fn change(
        &self,
        redis: &Redis,
        channel: &str,
        (first, last): (usize, usize),
        kind: (usize, usize),
    ) {
        let Self { sessions, users, .. } = self;
        let args = format!("\"{channel}\" {first} {last} {} {}", kind.0, kind.1);
        let reply = redis.command(&format!("EVAL \"{CHANGE}\" 2 {sessions} {users} {args}")).await;
        assert!(reply.starts_with(':'), "{reply}");
    }
}

/// A member's list, as the frames so far make it.
#[derive(Default)]
struct List {
    users: BTreeSet<String>,
    /// The list itself is still on its way.
    more: bool,
}

impl List {
    /// What a frame begins.
    fn of(frame: &Value) -> Self {
        let mut list = Self::default();
        list.take(frame);
        list
    }

    fn take(&mut self, frame: &Value) {
        let user = |member: &Value| member["user"].as_str().expect("a member has a name").to_owned();
        let listed = frame["members"].as_array().into_iter().flatten().map(user);
        match frame["type"].as_str() {
            Some("joined" | "presence") => self.users = listed.collect(),
            Some("members") => self.users.extend(listed),
            Some("member_joined") => _ = self.users.insert(user(&frame["member"])),
            Some("member_left") => _ = self.users.remove(&user(&frame["member"])),
            _ => return,
        }
        // Events never come amid a list.
        assert!(!self.more || frame["members"].is_array(), "amid a list came {frame}");
        self.more = frame["more"] == true;
    }

    /// Takes frames until the list has this many members, and no more frames are on their way.
    async fn settle(&mut self, client: &mut Client, count: usize) {
        eventually("the list has all members", async || {
            client.so_far().await.iter().for_each(|frame| self.take(&frame.json));
            !self.more && self.users.len() == count
        })
        .await;
    }

    /// Takes frames until the list is whole and has exactly these members.
    async fn becomes(&mut self, client: &mut Client, members: &BTreeSet<String>) {
        let frames = async {
            while self.more || self.users != *members {
                self.take(&client.try_next().await.expect("a member stays connected").json);
            }
        };
        if timeout(patient(CROWD_PATIENCE), frames).await.is_err() {
            let (lacks, surplus) = (members.difference(&self.users).count(), self.users.difference(members).count());
            panic!("a list on node {} lacks {lacks} members, and has {surplus} too many", client.node());
        }
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
    let mut member = Client::connect(cluster.address(0)).await;
    let mut list = List::of(&member.join_with(json!({"room": "lossy", "presence": true})).await);
    let keys = Keys::of(cluster.redis(), "lossy").await;
    keys.change(cluster.redis(), "", (1, 1), (12, 1)).await;
    keys.change(cluster.redis(), &keys.channel, (2, 2), (12, 1)).await;
    list.settle(&mut member, 3).await;
    assert!(list.users.contains("000000000001"), "the lost one: {:?}", list.users);
}

/// A member who left while the node's subscriber connections were away stayed in its members' lists until the next member
/// event of the room.
#[tokio::test]
async fn a_presence_event_during_a_reconnect_was_missing_until_the_next_one() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut member = Client::connect(cluster.address(0)).await;
    let mut list = List::of(&member.join_with(json!({"room": "cut", "presence": true})).await);
    let keys = Keys::of(cluster.redis(), "cut").await;
    keys.change(cluster.redis(), &keys.channel, (1, 1), (12, 1)).await;
    list.settle(&mut member, 2).await;
    keys.change(cluster.redis(), "", (2, 2), (12, 1)).await;
    cluster.redis().command("CLIENT KILL TYPE pubsub").await;
    list.settle(&mut member, 3).await;
}

/// A join was refused at once, where polls wait for a second or two.
#[tokio::test]
async fn a_short_loss_of_the_backplane_refused_joins_with_presence() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut client = Client::connect(cluster.address(0)).await;
    client.join("short").await;
    for _ in 0..10 {
        cluster.redis().command("CLIENT KILL TYPE pubsub").await;
        cluster.redis().command("CLIENT KILL TYPE normal SKIPME yes").await;
        let joined = client.join_with(json!({"room": "short", "presence": true})).await;
        assert_eq!(joined["members"].as_array().map(Vec::len), Some(1), "{joined}");
    }
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
    let mut asked = List::of(&question);
    while question["more"] == true {
        question = slow.take("members").await.json;
        asked.take(&question);
    }
    assert_eq!(asked.users, list.users);
}

/// The list that a member asked for took its time, and events did not wait for it: those who left meanwhile were in a later
/// portion, and stayed in the list for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_who_left_while_a_list_was_sent_as_an_answer_stayed_in_it() {
    // 4 MB: more than the outbox and what the kernel takes for a client that does not read.
    const MEMBERS: usize = 2_000;
    let mut cluster = Cluster::over_redis(1).config("[limits]\noutbox_seconds = 600\n").start().await;
    let mut others = connect_all(&cluster, 3).await;
    for other in &mut others {
        other.join("long").await;
    }
    let keys = Keys::of(cluster.redis(), "long").await;
    for part in 0..MEMBERS / 100 {
        keys.change(cluster.redis(), "", (100 * part + 1, 100 * part + 100), (2_000, 1)).await;
    }
    let mut slow = Client::connect(cluster.address(0)).await;
    let mut list = List::of(&slow.join_with(json!({"room": "long", "presence": true})).await);
    list.settle(&mut slow, MEMBERS + 4).await;
    for left in 1..=others.len() {
        slow.send(json!({"type": "presence", "id": 900 + left, "room": "long"})).await;
        list.take(&slow.take("presence").await.json);
        assert!(list.more && list.users.is_empty(), "the list is on its way");
        others[left - 1].leave("long").await;
        list.settle(&mut slow, MEMBERS + 4 - left).await;
    }
    let asked: Vec<_> = others.iter().map(|other| other.session()).filter(|user| list.users.contains(user)).collect();
    assert!(asked.is_empty(), "they have left: {asked:?}");
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

/// How long the lists of a crowd may take: millions of events, on a machine that does other things too.
const CROWD_PATIENCE: Duration = Duration::from_secs(60);

/// Connects clients to the nodes in turn.
async fn connect_all(cluster: &Cluster, count: usize) -> Vec<Client> {
    let connects = stream::iter(0..count).map(|at| Client::connect(cluster.address(at)));
    connects.buffered(100).collect().await
}

async fn join_crowd(client: &mut Client) -> Value {
    client.send(json!({"type": "join", "room": "crowd", "presence": true})).await;
    let reply = within_time(patient(CROWD_PATIENCE), "joined", client.try_next()).await.expect("a reply").json;
    assert_eq!(reply["type"], "joined", "{reply}");
    reply
}

/// Has a client join, and from then on read what it is sent and look at none of it.
async fn join_and_read(mut client: Client) -> (String, JoinHandle<()>) {
    join_crowd(&mut client).await;
    (client.session(), tokio::spawn(async move { client.websocket().discard().await }))
}

/// Waits until each of the sample has exactly these members in its list, and looks whether that stays so.
async fn all_list(sample: &mut [(Client, List)], members: &BTreeSet<String>) {
    join_all(sample.iter_mut().map(|(client, list)| list.becomes(client, members))).await;
    for (client, list) in sample {
        client.so_far().await.iter().for_each(|frame| list.take(&frame.json));
        assert!(!list.more && list.users == *members, "a whole list changed once more");
    }
}

/// A crowd joins in waves, each as soon as some of the wave before have their `joined`: so the list that a member gets has
/// a part of the crowd, and the events of the later waves come, from both nodes, while it is on its way. All members read
/// what they are sent. Since 2,500 lists of 2,500 members are too much to parse, only 40 keep theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_crowd_have_whole_lists() {
    const CROWD: usize = 2_500;
    const WAVE: usize = 250;
    const CHANGING: usize = 200;
    // Members that only read answer no ping.
    let cluster = Cluster::over_redis(2).config("[limits]\nping_seconds = 300\n").start().await;
    let mut crowd = connect_all(&cluster, CROWD).await;
    let newcomers = connect_all(&cluster, CHANGING).await;
    let mut members: BTreeSet<String> = crowd.iter().map(|client| client.session()).collect();
    let (mut sample, mut others) = (Vec::new(), Vec::new());
    while !crowd.is_empty() {
        let mut joining = crowd.split_off(crowd.len() - WAVE);
        others.extend(joining.split_off(4).into_iter().map(|other| tokio::spawn(join_and_read(other))));
        let joined = join_all(joining.iter_mut().map(join_crowd)).await;
        sample.extend(joining.into_iter().zip(joined).map(|(client, joined)| (client, List::of(&joined))));
    }
    let mut readers = try_join_all(others).await.expect("all join");
    all_list(&mut sample, &members).await;
    // Some leave at once, and others join at once.
    for (user, reader) in readers.drain(..CHANGING) {
        reader.abort();
        members.remove(&user);
    }
    members.extend(newcomers.iter().map(|client| client.session()));
    readers.extend(join_all(newcomers.into_iter().map(join_and_read)).await);
    all_list(&mut sample, &members).await;
    assert!(readers.iter().all(|(_, reader)| !reader.is_finished()), "a member's connection has ended");
}
