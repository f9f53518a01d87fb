//! A cluster of real servers: three masters, each with a third of the slots.

use super::{Gateway, RedisConfig, Server, holds_the_contract, room_where, server::free_port, until};
use crate::{
    Broker, Cursor, Gap, NodeTarget, Offset, PresenceDetail, PresenceUpdate, RoomQuery, SessionId,
    contract::{WAIT_MAX, message, room, texts},
    redis::keys::{PARTITIONS, Partition},
};
use bytes::Bytes;
use std::time::Duration;

const THIRDS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

struct Cluster {
    /// Three masters, then the replica of the first one if there is one.
    servers: Vec<Server>,
}

/// The options of a server that uses this port for the other servers of its cluster.
fn in_cluster(bus_port: u16) -> Vec<String> {
    ["--cluster-enabled", "yes", "--cluster-port", &bus_port.to_string()].map(String::from).to_vec()
}

impl Cluster {
    async fn start(replica: bool) -> Self {
        let (mut servers, first_bus_port) = (Vec::new(), free_port());
        for at in 0..3 + usize::from(replica) {
            let mut words = in_cluster(if at == 0 { first_bus_port } else { free_port() });
            words.extend(["--cluster-node-timeout", "1500", "--repl-ping-replica-period", "1"].map(String::from));
            servers.push(Server::start_with(|_| words).await);
        }
        for (at, (first, last)) in THIRDS.into_iter().enumerate() {
            servers[at].command(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
        }
        for (at, server) in servers.iter().enumerate() {
            server.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1)).await;
        }
        for server in &servers[1..] {
            server.command(&format!("CLUSTER MEET 127.0.0.1 {} {first_bus_port}", servers[0].port)).await;
        }
        let cluster = Self { servers };
        cluster.agrees(cluster.servers.len()).await;
        if replica {
            let id: String = cluster.servers[0].ask("CLUSTER MYID").await;
            cluster.servers[3].command(&format!("CLUSTER REPLICATE {id}")).await;
            until("the replica to follow", Duration::from_secs(30), || async {
                cluster.servers[3].ask::<String>("INFO replication").await.contains("master_link_status:up")
            })
            .await;
        }
        cluster
    }

    async fn agrees(&self, known: usize) {
        until("the cluster to agree", Duration::from_secs(30), || async {
            for server in &self.servers {
                let info: String = server.ask("CLUSTER INFO").await;
                if !info.contains("cluster_state:ok") || !info.contains(&format!("cluster_known_nodes:{known}")) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    fn config(&self) -> RedisConfig {
        let hosts: Vec<_> = self.servers[1..].iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        RedisConfig::parse(&format!("redis+cluster://{}", hosts.join(","))).unwrap()
    }

    /// Moves one slot with its keys, as redis-cli does.
    async fn migrate(&self, slot: u16, from: usize, to: usize) {
        let ids: [String; 2] =
            [self.servers[from].ask("CLUSTER MYID").await, self.servers[to].ask("CLUSTER MYID").await];
        self.servers[to].command(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0])).await;
        self.servers[from].command(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1])).await;
        loop {
            let keys: Vec<String> = self.servers[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} 100")).await;
            if keys.is_empty() {
                break;
            }
            let keys = keys.join(" ");
            self.servers[from]
                .command(&format!("MIGRATE 127.0.0.1 {}  0 5000 KEYS {keys}", self.servers[to].port))
                .await;
        }
        for at in [to, from] {
            self.servers[at].command(&format!("CLUSTER SETSLOT {slot} NODE {}", ids[1])).await;
        }
    }
}

fn on(third: usize) -> impl Fn(Partition) -> bool {
    move |partition| (THIRDS[third].0..=THIRDS[third].1).contains(&partition.slot())
}

#[tokio::test]
async fn slots_are_computed_as_redis_does() {
    let server = Server::start_with(|_| in_cluster(free_port())).await;
    for partition in Partition::all().step_by(17) {
        let slot: u16 = server.ask(&format!("CLUSTER KEYSLOT fanfare:{{p{:02x}}}:c:a", partition.0)).await;
        assert_eq!(partition.slot(), slot);
    }
    let shares = [0, 1, 2].map(|third| Partition::all().filter(|p| on(third)(*p)).count());
    assert_eq!(shares.iter().sum::<usize>(), PARTITIONS);
    assert!(shares.iter().all(|share| (60..=110).contains(share)), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_cluster_the_contract_holds() {
    let cluster = Cluster::start(false).await;
    holds_the_contract(&cluster.config()).await;
}

/// The rooms get a new epoch, so that no client resumes over messages that the replica did not have. The rooms of other
/// masters are not affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_cluster_failover_rooms_go_on_at_the_new_master() {
    let mut cluster = Cluster::start(true).await;
    let (a, b) = (Gateway::connect(cluster.config()).await, Gateway::connect(cluster.config()).await);
    let rooms = [0, 1].map(|third| room_where("failover", on(third)));
    let mut before = Vec::new();
    let enter = PresenceUpdate::Enter { session: SessionId([1; 12]), user: None, info: None, announce: true };
    for room in &rooms {
        before.push(b.node.subscribe(room).await);
        a.node.say(room, "one").await;
        b.node.seen.messages(room, 1).await;
        a.broker.update_presence(room, enter.clone()).await.unwrap();
    }
    cluster.servers[0].kill();
    until("the failover", Duration::from_secs(30), || async {
        let info: String = cluster.servers[3].ask("INFO replication").await;
        let state: String = cluster.servers[3].ask("CLUSTER INFO").await;
        info.contains("role:master") && state.contains("cluster_state:ok")
    })
    .await;
    until("a publish", WAIT_MAX, || async { a.node.try_publish(message(&rooms[0], "two")).await.is_ok() }).await;
    b.node
        .seen
        .wait_for("delivery or head", |seen| {
            let last = seen.messages(&rooms[0]).last().and_then(|m| m.cursor);
            let is_delivered = last.is_some_and(|last| last.epoch != before[0].epoch);
            (is_delivered || seen.heads(&rooms[0]).iter().any(|head| head.offset.0 > 0)).then_some(())
        })
        .await;
    // A busy machine may need longer for the switch than a read waits for it.
    until("b to be up", WAIT_MAX, || async { b.broker.status().up }).await;
    let page = b.node.since(&rooms[0], Cursor::new(before[0].epoch, Offset(1)), 100).await;
    assert_eq!((texts(&page.publications).last().unwrap().as_str(), page.gap), ("two", Some(Gap { missed: None })));
    let page = b.node.since(&rooms[1], before[1], 100).await;
    assert_eq!((texts(&page.publications), page.gap), (vec!["one".to_owned()], None));
    let there = || async { a.broker.presence(&rooms[0], PresenceDetail::Counts).await.is_ok_and(|p| p.sessions == 1) };
    until("the member", WAIT_MAX, there).await;
}

/// When a slot moves, followers of its rooms get what is published at the new master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_of_a_migrated_slot_are_followed_at_their_new_master() {
    let cluster = Cluster::start(false).await;
    let (a, b) = (Gateway::connect(cluster.config()).await, Gateway::connect(cluster.config()).await);
    let moving = room_where("migrate", on(0));
    let staying = room_where("migrate", on(1));
    let before = b.node.subscribe(&moving).await;
    let quiet = room("live");
    b.broker.subscribe(b.node.me, &quiet, None).await.unwrap();
    b.node.subscribe(&staying).await;
    a.node.say(&moving, "one").await;
    b.node.seen.messages(&moving, 1).await;
    cluster.migrate(Partition::of(&moving).slot(), 0, 1).await;
    until("a publish", WAIT_MAX, || async { a.node.try_publish(message(&moving, "two")).await.is_ok() }).await;
    b.node
        .seen
        .wait_for("delivery or head", |seen| {
            let epochs =
                seen.messages(&moving).iter().filter_map(|m| m.cursor).filter(|c| c.epoch != before.epoch).count();
            (epochs > 0 || seen.heads(&moving).iter().any(|head| head.epoch != before.epoch && head.offset.0 > 0))
                .then_some(())
        })
        .await;
    a.node.say(&staying, "here").await;
    b.node.seen.messages(&staying, 1).await;
    assert_eq!(a.broker.status().rooms, 0);
    assert_eq!(b.broker.status().rooms, 3);
    // Control messages over the slot's new master arrive too.
    for round in 0..3 {
        let message = Bytes::from(format!("control {round}"));
        a.broker.send_control(NodeTarget::One(b.broker.status().node), message.clone()).await.unwrap();
        b.node.seen.wait_for("the control message", |seen| seen.controls.contains(&message).then_some(())).await;
    }
    let query = RoomQuery { prefix: String::new(), after: None, limit: 10 };
    assert!(a.broker.rooms(query).await.unwrap().rooms.is_empty());
}
