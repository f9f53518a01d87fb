//! A master, its replica and three sentinels: the broker finds the master, also after a failover.

use super::{Gateway, RedisConfig, Server, holds_the_contract, server::free_port, until};
use crate::{
    Broker, Cursor, Gap, Offset,
    contract::{WAIT_MAX, message, room, texts},
};
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

struct Sentinels {
    servers: [Server; 2],
    sentinels: Vec<(Child, u16)>,
}

impl Sentinels {
    async fn start() -> Self {
        let master = Server::start().await;
        let port = master.port.to_string();
        let replica = Server::start_with(|_| ["--replicaof", "127.0.0.1", &port].map(String::from).to_vec()).await;
        until("the replica to follow", WAIT_MAX, || async {
            replica.ask::<String>("INFO replication").await.contains("master_link_status:up")
        })
        .await;
        let sentinel = |at: usize| {
            let port = free_port();
            let file = master.dir.join(format!("sentinel-{at}.conf"));
            let settings = format!(
                "port {port}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor main 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n",
                dir = master.dir.to_str().unwrap(),
                master = master.port,
            );
            std::fs::write(&file, settings).unwrap();
            let child =
                Command::new("redis-server").arg(&file).arg("--sentinel").stdout(Stdio::null()).spawn().unwrap();
            (child, port)
        };
        let sentinels = (0..3).map(sentinel).collect();
        let setup = Self { servers: [master, replica], sentinels };
        until("the sentinels to know each other and the replica", Duration::from_secs(30), || async {
            for (_, port) in &setup.sentinels {
                let Ok(client) = redis::Client::open(format!("redis://127.0.0.1:{port}")) else { return false };
                let Ok(mut conn) = client.get_multiplexed_async_connection().await else { return false };
                let mut ask = redis::cmd("SENTINEL");
                let Ok(known) = ask
                    .arg("MASTER")
                    .arg("main")
                    .query_async::<std::collections::HashMap<String, String>>(&mut conn)
                    .await
                else {
                    return false;
                };
                if known.get("num-slaves").is_none_or(|n| n != "1")
                    || known.get("num-other-sentinels").is_none_or(|n| n != "2")
                {
                    return false;
                }
            }
            true
        })
        .await;
        setup
    }

    fn config(&self) -> RedisConfig {
        let hosts: Vec<_> = self.sentinels.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        RedisConfig::parse(&format!("redis+sentinel://{}/main", hosts.join(","))).unwrap()
    }

    /// Waits until a sentinel names the second server as the master.
    async fn promoted(&self) {
        until("the failover", Duration::from_secs(30), || async {
            for (_, port) in &self.sentinels {
                let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
                let Ok(mut conn) = client.get_multiplexed_async_connection().await else { continue };
                let mut ask = redis::cmd("SENTINEL");
                let master =
                    ask.arg("GET-MASTER-ADDR-BY-NAME").arg("main").query_async::<(String, u16)>(&mut conn).await;
                if master.is_ok_and(|(_, port)| port == self.servers[1].port) {
                    return true;
                }
            }
            false
        })
        .await;
    }

    async fn order_failover(&self) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.sentinels[0].1)).unwrap();
        let mut conn = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("SENTINEL").arg("FAILOVER").arg("main").exec_async(&mut conn).await.unwrap();
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (sentinel, _) in &mut self.sentinels {
            let _ = sentinel.kill();
            let _ = sentinel.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sentinels_the_contract_holds() {
    let setup = Sentinels::start().await;
    holds_the_contract(&setup.config()).await;
}

/// Messages that were acknowledged but not replicated are lost and reported as a gap; later messages are delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_sentinel_failover_deliveries_go_on_and_the_loss_is_a_gap() {
    let mut setup = Sentinels::start().await;
    let (a, b) = (Gateway::connect(setup.config()).await, Gateway::connect(setup.config()).await);
    let room = room("failover");
    let before = b.node.subscribe(&room).await;
    a.node.say(&room, "one").await;
    b.node.seen.messages(&room, 1).await;
    setup.servers[0].kill();
    setup.promoted().await;
    until("a publish", WAIT_MAX, || async { a.node.try_publish(message(&room, "two")).await.is_ok() }).await;
    b.node
        .seen
        .wait_for("delivery or head", |seen| {
            let last = seen.messages(&room).last().and_then(|m| m.cursor);
            (last.is_some_and(|last| last.epoch != before.epoch) || seen.heads(&room).iter().any(|h| h.offset.0 > 0))
                .then_some(())
        })
        .await;
    // Reads follow too, and a resuming client gets the gap. A busy machine may need longer for the switch than a read
    // waits for it.
    until("b to be up", WAIT_MAX, || async { b.broker.status().up }).await;
    let page = b.node.since(&room, Cursor::new(before.epoch, Offset(1)), 100).await;
    assert_eq!((texts(&page.publications).last().unwrap().as_str(), page.gap), ("two", Some(Gap { missed: None })));
}

/// The old master goes on as a replica, and would still take messages over connections that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_planned_failover_every_connection_leaves_the_old_master() {
    let setup = Sentinels::start().await;
    let (a, b) = (Gateway::connect(setup.config()).await, Gateway::connect(setup.config()).await);
    let room = room("switch");
    b.node.subscribe(&room).await;
    a.node.say(&room, "one").await;
    setup.order_failover().await;
    setup.promoted().await;
    // Connections that have subscribed to something. The sentinels subscribe too, but over the older protocol.
    let subscribers = |at: usize| {
        let asked = setup.servers[at].try_ask::<String>("CLIENT LIST TYPE pubsub");
        async { asked.await.map_or(99, |list| list.lines().filter(|line| line.contains("resp=3")).count()) }
    };
    until("the subscriber connections at the new master", WAIT_MAX, || async {
        (2..=3).contains(&subscribers(1).await)
            && subscribers(0).await == 0
            && a.broker.status().up
            && b.broker.status().up
    })
    .await;
    let cursor = a.node.say(&room, "two").await;
    b.node
        .seen
        .wait_for("the message", |seen| {
            (seen.messages(&room).last().and_then(|m| m.cursor) == Some(cursor) || seen.heads(&room).contains(&cursor))
                .then_some(())
        })
        .await;
}
