//! Presence when nodes die and Redis forgets.

use super::{Gateway, RedisConfig, room_where, server::Server, until};
use crate::{
    Broker, PresenceDetail, PresenceKind, PresenceUpdate, Room, RoomQuery, SessionId, User, Who,
    contract::{WAIT_MAX, room},
    redis::keys::{Keys, Part, Partition},
};
use futures_util::future::join_all;
use std::time::{Duration, Instant};

pub(super) fn enter(n: u8, user: &str) -> PresenceUpdate {
    PresenceUpdate::Enter { session: SessionId([n; 12]), user: Some(User::new(user)), info: None, announce: true }
}

pub(super) fn leave(n: u8) -> PresenceUpdate {
    PresenceUpdate::Leave { session: SessionId([n; 12]), announce: true }
}

/// A configuration with times short enough for tests.
pub(super) fn hasty(server: &Server) -> RedisConfig {
    RedisConfig { heartbeat: Duration::from_millis(100), dead_after: Duration::from_secs(1), ..server.config() }
}

pub(super) async fn users(gateway: &Gateway, room: &Room) -> Vec<String> {
    let presence = gateway.broker.presence(room, PresenceDetail::Members).await.unwrap();
    let name = |who: &Who| match who {
        Who::User(user) => user.as_str().to_owned(),
        Who::Session(_) => "anonymous".to_owned(),
    };
    let mut names: Vec<_> = presence.members.iter().map(|m| name(&m.who)).collect();
    names.sort();
    assert_eq!(presence.users, names.len() as u64);
    names
}

#[tokio::test]
async fn a_dead_node_s_members_leave_once() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let dying = Gateway::connect(hasty(&server)).await;
    let rooms: Vec<Room> = (0..20).map(|_| room("sweep")).collect();
    for room in &rooms {
        a.node.subscribe(room).await;
        dying.broker.update_presence(room, enter(1, "ann")).await.unwrap();
        dying.broker.update_presence(room, enter(2, "bob")).await.unwrap();
        b.broker.update_presence(room, enter(3, "ann")).await.unwrap();
    }
    drop(dying);
    for room in &rooms {
        let events = a.node.seen.presence(room, 3).await;
        assert_eq!(events.len(), 3, "ann, bob, and bob gone");
        assert_eq!((events[2].kind, &events[2].who), (PresenceKind::Left, &Who::User(User::new("bob"))));
        assert_eq!(users(&a, room).await, ["ann"]);
    }
    // The other two nodes have nothing more to sweep, and Redis has no key of the dead one.
    b.broker.update_presence(&rooms[0], leave(3)).await.unwrap();
    assert_eq!(a.node.seen.presence(&rooms[0], 4).await.len(), 4);
    until("the sweep to be recorded", WAIT_MAX, || async {
        let nodes: Vec<String> = server.ask("ZRANGE fanfare:nodes 0 -1").await;
        nodes.len() == 3 && nodes.iter().filter(|node| node.starts_with('s')).count() == 1
    })
    .await;
    let left: Vec<String> = server.ask("KEYS *:nm:*").await;
    assert!(left.iter().all(|key| key.ends_with(&b.broker.status().node.to_string())), "{left:?}");
}

#[tokio::test]
async fn after_a_flush_presence_is_written_again_without_events() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let room = room("flush");
    b.node.subscribe(&room).await;
    a.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
    b.broker.update_presence(&room, enter(2, "bob")).await.unwrap();
    let before = a.broker.presence(&room, PresenceDetail::Counts).await.unwrap().version;
    server.command("FLUSHALL").await;
    until("both members to be back", WAIT_MAX, || async { users(&a, &room).await == ["ann", "bob"] }).await;
    a.broker.update_presence(&room, leave(1)).await.unwrap();
    let events = b.node.seen.presence(&room, 3).await;
    assert_eq!(events.len(), 3, "no member joined twice: {events:?}");
    assert_eq!((events[2].kind, &events[2].who), (PresenceKind::Left, &Who::User(User::new("ann"))));
    assert!(events[2].version > before, "versions go on growing");
    assert_eq!(users(&b, &room).await, ["bob"]);
}

#[tokio::test]
async fn after_an_empty_restart_members_are_back_with_the_changes_made_meanwhile() {
    let mut server = Server::start().await;
    let a = Gateway::connect(hasty(&server)).await;
    let room = room("restart");
    for (n, user) in [(1, "ann"), (2, "bob")] {
        a.broker.update_presence(&room, enter(n, user)).await.unwrap();
    }
    server.kill();
    until("the broker to be down", WAIT_MAX, || async { !a.broker.status().up }).await;
    assert!(a.broker.update_presence(&room, enter(3, "cid")).await.is_err(), "recorded, but not written");
    drop(a.broker.update_presence(&room, leave(2)));
    server.run().await;
    let there = || async { a.broker.status().up && users(&a, &room).await == ["ann", "cid"] };
    until("the members", WAIT_MAX, there).await;
}

/// Redis has forgotten the member, so only this node knows that it has left.
#[tokio::test]
async fn a_leave_while_redis_is_away_and_forgets_is_announced_afterwards() {
    let mut server = Server::start().await;
    let (a, b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let room = room("deferred");
    b.node.subscribe(&room).await;
    // Cid has a session at both nodes, and leaves one of them.
    for (gateway, n, user) in [(&a, 1, "ann"), (&b, 2, "bob"), (&a, 3, "cid"), (&b, 4, "cid")] {
        gateway.broker.update_presence(&room, enter(n, user)).await.unwrap();
    }
    assert_eq!(b.node.seen.presence(&room, 3).await.len(), 3);
    server.kill();
    until("both nodes to be down", WAIT_MAX, || async { !a.broker.status().up && !b.broker.status().up }).await;
    for n in [1, 3] {
        assert!(a.broker.update_presence(&room, leave(n)).await.is_err(), "recorded, but not written");
    }
    server.run().await;
    let there = || async { a.broker.status().up && b.broker.status().up && users(&b, &room).await == ["bob", "cid"] };
    until("the members", WAIT_MAX, there).await;
    let left = b.node.seen.wait_for("ann to leave", |seen| seen.presence(&room).get(3).cloned()).await;
    assert_eq!((left.kind, &left.who), (PresenceKind::Left, &Who::User(User::new("ann"))));
    b.broker.update_presence(&room, leave(2)).await.unwrap();
    let events = b.node.seen.presence(&room, 5).await;
    assert_eq!((events.len(), &events[4].who), (5, &Who::User(User::new("bob"))), "cid never left: {events:?}");
}

/// A change that cannot be written during a stall is written once the connection is back.
#[tokio::test]
async fn a_change_during_a_stall_is_written_after_it() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let room = room("stalled");
    a.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
    server.stall();
    assert!(a.broker.update_presence(&room, enter(2, "bob")).await.is_err());
    assert!(a.broker.update_presence(&room, leave(1)).await.is_err());
    server.wake();
    let there = || async { a.broker.status().up && users(&a, &room).await == ["bob"] };
    until("the members", WAIT_MAX, there).await;
}

/// Another node took this one for dead while its heartbeats were missing.
#[tokio::test]
async fn a_live_node_whose_members_were_removed_writes_them_again() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let room = room("alive");
    b.node.subscribe(&room).await;
    a.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
    // As if its heartbeats had been missing for a while, until b has swept it.
    let swept = format!("s{}", a.broker.status().node);
    until("the sweep", WAIT_MAX, || async {
        server.command(&format!("ZADD fanfare:nodes XX 1 {}", a.broker.status().node)).await;
        server.ask::<Option<f64>>(&format!("ZSCORE fanfare:nodes {swept}")).await.is_some()
    })
    .await;
    until("the members", WAIT_MAX, || async { users(&b, &room).await == ["ann"] }).await;
    a.broker.update_presence(&room, leave(1)).await.unwrap();
    let gone = |seen: &crate::contract::Seen| {
        let kinds: Vec<_> = seen.presence(&room).iter().map(|event| event.kind).collect();
        (kinds.len() % 2 == 0).then_some(kinds)
    };
    until("an empty room", WAIT_MAX, || async { users(&b, &room).await.is_empty() }).await;
    let kinds = b.node.seen.wait_for("the last leave", gone).await;
    // If `a` writes its member again before `b` sweeps the room, the member never left. Else it left and joined once
    // more.
    assert!([2, 4].contains(&kinds.len()), "{kinds:?}");
    assert!(kinds.chunks(2).all(|pair| pair == [PresenceKind::Joined, PresenceKind::Left]), "{kinds:?}");
}

/// Redis was away for longer than a node may be without a heartbeat. The first node that is back must not remove the
/// members of the others.
#[tokio::test]
async fn after_a_long_stall_no_node_is_taken_for_dead() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let room = room("outage");
    b.node.subscribe(&room).await;
    for (gateway, n, user) in [(&a, 1, "ann"), (&b, 2, "bob")] {
        gateway.broker.update_presence(&room, enter(n, user)).await.unwrap();
    }
    server.stall();
    let stalled = Instant::now();
    until("a time in which a node would be dead", WAIT_MAX, || async { stalled.elapsed() > Duration::from_secs(2) })
        .await;
    server.wake();
    until("both to be back", WAIT_MAX, || async { a.broker.status().up && b.broker.status().up }).await;
    a.broker.update_presence(&room, enter(3, "cid")).await.unwrap();
    let events = b.node.seen.presence(&room, 3).await;
    assert!(events.iter().all(|event| event.kind == PresenceKind::Joined), "{events:?}");
    let nodes: Vec<String> = server.ask("ZRANGE fanfare:nodes 0 -1").await;
    assert!(nodes.iter().all(|node| !node.starts_with(['s', 'x'])), "{nodes:?}");
}

#[tokio::test]
async fn closing_a_broker_removes_its_members_at_once() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(server.config()).await, Gateway::connect(server.config()).await);
    let rooms: Vec<Room> = (0..300).map(|_| room("close")).collect();
    for room in &rooms {
        drop(a.broker.update_presence(room, enter(1, "ann")));
    }
    b.node.subscribe(&rooms[0]).await;
    a.broker.update_presence(&rooms[0], enter(2, "bob")).await.unwrap();
    a.broker.close().await.unwrap();
    let query = RoomQuery { prefix: "close:".into(), after: None, limit: 10 };
    assert!(b.broker.rooms(query).await.unwrap().rooms.is_empty());
    let nodes: Vec<String> = server.ask("ZRANGE fanfare:nodes 0 -1").await;
    assert_eq!(nodes, [b.broker.status().node.to_string()]);
    assert!(!a.broker.status().up);
    until("the connections to close", WAIT_MAX, || async {
        let clients: String = server.ask("CLIENT LIST TYPE pubsub").await;
        (1..=2).contains(&clients.lines().count())
    })
    .await;
    let left: Vec<String> = server.ask("KEYS *:nm:*").await;
    assert_eq!(left, Vec::<String>::new());
}

/// If another node has taken a session over, the leave of the first node does not remove it.
#[tokio::test]
async fn a_session_that_another_node_took_over_stays() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(server.config()).await, Gateway::connect(server.config()).await);
    let room = room("moved");
    b.node.subscribe(&room).await;
    a.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
    b.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
    a.broker.update_presence(&room, leave(1)).await.unwrap();
    assert_eq!(users(&a, &room).await, ["ann"]);
    b.broker.update_presence(&room, leave(1)).await.unwrap();
    let events = b.node.seen.presence(&room, 2).await;
    assert_eq!(events.len(), 2);
    assert_eq!(users(&a, &room).await, Vec::<String>::new());
}

/// How many commands of a kind Redis has run.
async fn calls(server: &Server, command: &str) -> usize {
    let stats: String = server.ask("INFO commandstats").await;
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Each room used to cost two round trips, one after the other: 20,000 rooms at a Redis 2 ms away took 112 s, in which
/// other nodes began to sweep the same rooms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rooms_of_a_dead_node_are_swept_together_and_by_one_node() {
    const ROOMS: usize = 2_000;
    let server = Server::start().await;
    let (a, _b) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let dying = Gateway::connect(hasty(&server)).await;
    let rooms: Vec<Room> = (0..ROOMS).map(|_| room_where("crowd", |partition| partition.0 == 7)).collect();
    for part in rooms.chunks(256) {
        let entering = part.iter().map(|room| dying.broker.update_presence(room, enter(1, "ann")));
        assert!(join_all(entering).await.iter().all(Result::is_ok));
    }
    // Every script ends in one EVALSHA; only a heartbeat looks for the last heartbeat of all.
    let scripts = || async { calls(&server, "evalsha").await - calls(&server, "zrevrangebyscore").await };
    let (before, scans) = (scripts().await, calls(&server, "hscan").await);
    drop(dying);
    let query = RoomQuery { prefix: "crowd:".into(), after: None, limit: 1 };
    until("the last ghost to leave", 3 * WAIT_MAX, || async {
        a.broker.rooms(query.clone()).await.unwrap().rooms.is_empty()
    })
    .await;
    until("the sweep to be recorded", WAIT_MAX, || async {
        let nodes: Vec<String> = server.ask("ZRANGE fanfare:nodes 0 -1").await;
        nodes.iter().any(|node| node.starts_with('s'))
    })
    .await;
    let calls_made = scripts().await - before;
    println!("{ROOMS} rooms: {calls_made} calls");
    assert!((ROOMS / 32..ROOMS / 32 + 10).contains(&calls_made), "{calls_made} calls");
    assert_eq!(calls(&server, "hscan").await, scans);
}

/// The node that sweeps is often the one that died.
#[tokio::test]
async fn if_the_node_that_sweeps_dies_another_one_sweeps_it() {
    let server = Server::start().await;
    let sweeping = Gateway::connect(hasty(&server)).await;
    let (a, dying) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let sweeper: String = server.ask("GET fanfare:sweeper").await;
    assert_eq!(sweeper, sweeping.broker.status().node.to_string());
    let room = room("sweeper");
    for (gateway, n, user) in [(&a, 1, "ann"), (&sweeping, 2, "bob"), (&dying, 3, "cid")] {
        gateway.broker.update_presence(&room, enter(n, user)).await.unwrap();
    }
    drop((sweeping, dying));
    until("both to be swept", 2 * WAIT_MAX, || async { users(&a, &room).await == ["ann"] }).await;
}

/// A failed sweep used to begin again when its claim had expired.
#[tokio::test]
async fn a_sweep_that_redis_refuses_in_one_room_goes_on_with_the_others() {
    let server = Server::start().await;
    let a = Gateway::connect(hasty(&server)).await;
    let dying = Gateway::connect(hasty(&server)).await;
    let rooms: Vec<Room> = (0..16).map(|at| room_where("half", |partition| partition.0 == at)).collect();
    for room in &rooms {
        dying.broker.update_presence(room, enter(1, "ann")).await.unwrap();
    }
    // Redis refuses scripts that use a key of another type.
    let broken = Keys::new("fanfare", 0, false).of(Part::SESSIONS, &rooms[3]);
    server.command(&format!("RENAME {broken} kept")).await;
    server.command(&format!("SET {broken} x")).await;
    drop(dying);
    let query = RoomQuery { prefix: "half:".into(), after: None, limit: 100 };
    let listed = || async { a.broker.rooms(query.clone()).await.unwrap().rooms };
    until("the others to be swept", 2 * WAIT_MAX, || async { listed().await == [rooms[3].clone()] }).await;
    server.command(&format!("RENAME kept {broken}")).await;
    until("the last one to be swept", WAIT_MAX, || async { listed().await.is_empty() }).await;
}

/// A page with one entry that could not be read was taken for the last one, and the rest stayed for good.
#[tokio::test]
async fn an_unreadable_entry_in_a_dead_node_s_list_kept_the_members_behind_it() {
    const PARTITION: Partition = Partition(7);
    let server = Server::start().await;
    let (a, dying) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let list = Keys::new("fanfare", 0, false).members_of(dying.broker.status().node, PARTITION);
    // A page has 256 members.
    let rooms: Vec<Room> = (0..300).map(|_| room_where("behind", |partition| partition == PARTITION)).collect();
    let entering = rooms.iter().map(|room| dying.broker.update_presence(room, enter(1, "ann")));
    assert!(join_all(entering).await.iter().all(Result::is_ok));
    server.command(&format!("ZADD {list} 0 !")).await;
    drop(dying);
    until("the list to be empty", 2 * WAIT_MAX, || async { server.ask::<u64>(&format!("EXISTS {list}")).await == 0 })
        .await;
    let query = RoomQuery { prefix: "behind:".into(), after: None, limit: 1 };
    assert!(a.broker.rooms(query).await.unwrap().rooms.is_empty());
}

/// One refused list made the reads of all others fail, and one refused member kept those behind it in its call.
#[tokio::test]
async fn a_dead_node_s_list_or_member_that_redis_refused_kept_the_others() {
    let server = Server::start().await;
    let (a, dying) = (Gateway::connect(hasty(&server)).await, Gateway::connect(hasty(&server)).await);
    let keys = Keys::new("fanfare", 0, false);
    let list = keys.members_of(dying.broker.status().node, Partition(0));
    let rooms: Vec<Room> = (0..16).map(|_| room_where("refused", |partition| partition.0 == 7)).collect();
    for room in &rooms {
        dying.broker.update_presence(room, enter(1, "ann")).await.unwrap();
    }
    let first = rooms.iter().min().unwrap();
    let broken = keys.of(Part::SESSIONS, first);
    server.command(&format!("RENAME {broken} kept")).await;
    server.command(&format!("SET {broken} x")).await;
    server.command(&format!("SET {list} x")).await;
    drop(dying);
    let query = RoomQuery { prefix: "refused:".into(), after: None, limit: 100 };
    let listed = || async { a.broker.rooms(query.clone()).await.unwrap().rooms };
    until("the others to be swept", 2 * WAIT_MAX, || async { listed().await == [first.clone()] }).await;
    server.command(&format!("RENAME kept {broken}")).await;
    until("the last one to be swept", WAIT_MAX, || async { listed().await.is_empty() }).await;
    server.command(&format!("DEL {list}")).await;
    until("the sweep to be recorded", WAIT_MAX, || async {
        let nodes: Vec<String> = server.ask("ZRANGE fanfare:nodes 0 -1").await;
        nodes.iter().any(|node| node.starts_with('s'))
    })
    .await;
}
