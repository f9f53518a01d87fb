//! Which thread of a node reads from Redis, seen from outside: each thread with sockets waits at an epoll instance of its
//! own, and the kernel lists the sockets of each instance (proc(5), `/proc/PID/fdinfo`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fanfare_tests::wait::{eventually, ticks};
use fanfare_tests::{Client, Cluster, http};
use futures_util::future::join_all;
use serde_json::json;

use crate::fixtures::split;
use crate::sentences::KEEP_ALL;

/// The threads of a node that have sockets, beside its first one.
const THREADS: [&str; 4] = ["redis", "shard-0", "shard-1", "admin"];
const CLIENTS: usize = 16;
const ROUNDS: usize = 5;
/// More than a node keeps of a room in memory, so that a resume from the first one is read from Redis.
const MESSAGES: usize = 100;
/// A node has two lasting connections to Redis. It opens others when clients ask for something.
const LASTING: usize = 2;

/// Between two looks at the threads.
const LOOK_EVERY: Duration = Duration::from_millis(20);

type Descriptor = u64;

/// A node's process, as the kernel shows it.
struct Threads {
    process: PathBuf,
    redis: SocketAddr,
}

impl Threads {
    /// The threads that wait at an epoll instance at this moment, each with the instance.
    fn waiting(&self) -> BTreeMap<String, Descriptor> {
        let tasks = fs::read_dir(self.process.join("task")).expect("a running process has threads");
        let waiting = |task: PathBuf| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            // "232 0x5 …": the number of the system call, and its arguments.
            let call = fs::read_to_string(task.join("syscall")).ok()?;
            let first = call.split_whitespace().nth(1)?.strip_prefix("0x")?;
            let instance = Descriptor::from_str_radix(first, 16).ok()?;
            let link = fs::read_link(self.process.join(format!("fd/{instance}"))).ok()?;
            (link.to_str() == Some("anon_inode:[eventpoll]")).then(|| (name.trim().to_owned(), instance))
        };
        tasks.filter_map(|task| waiting(task.ok()?.path())).collect()
    }

    /// The sockets that are registered with an epoll instance.
    fn registered(&self, instance: Descriptor) -> BTreeSet<Descriptor> {
        let info = fs::read_to_string(self.process.join(format!("fdinfo/{instance}"))).expect("the instance stays");
        let descriptor = |line: &str| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok();
        info.lines().filter_map(descriptor).collect()
    }

    /// The connections to Redis that are registered with each thread's instance.
    fn connections(&self, instances: &BTreeMap<String, Descriptor>) -> BTreeMap<String, BTreeSet<Descriptor>> {
        let table = fs::read_to_string(self.process.join("net/tcp")).expect("the table of the process's network");
        // 127.0.0.1 is 0100007F there.
        let remote = format!("0100007F:{:04X}", self.redis.port());
        let inode = |line: &str| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            (columns.get(2) == Some(&&*remote)).then(|| format!("socket:[{}]", columns[9]))
        };
        let inodes: BTreeSet<String> = table.lines().filter_map(inode).collect();
        let is_redis = |descriptor: &Descriptor| {
            let link = fs::read_link(self.process.join(format!("fd/{descriptor}")));
            link.is_ok_and(|link| link.to_str().is_some_and(|link| inodes.contains(link)))
        };
        let of_instance = |instance: Descriptor| {
            let found: BTreeSet<Descriptor> = self.registered(instance).into_iter().filter(is_redis).collect();
            // A number that was given to another file meanwhile is not registered here any more.
            &found & &self.registered(instance)
        };
        instances.iter().map(|(name, instance)| (name.clone(), of_instance(*instance))).collect()
    }

    /// Looks again and again at who has connections to Redis; it has to be the thread `redis` alone. Returns those that are
    /// there once everything `is_done`.
    async fn look_until(
        self,
        instances: BTreeMap<String, Descriptor>,
        is_done: Arc<AtomicBool>,
    ) -> BTreeSet<Descriptor> {
        let mut tick = ticks(LOOK_EVERY);
        loop {
            tick.tick().await;
            let is_last = is_done.load(Ordering::Relaxed);
            let mut connections = self.connections(&instances);
            let of_redis = connections.remove("redis").unwrap_or_default();
            connections.retain(|_, of_thread| !of_thread.is_empty());
            assert!(connections.is_empty(), "other threads have connections to Redis: {connections:?}");
            if is_last {
                return of_redis;
            }
        }
    }
}

/// Everything for which a node reads from Redis: joins with presence, history and cursors, polls, questions.
async fn ask_for_everything(address: SocketAddr, number: usize, first: &str) {
    let mut client = Client::connect(address).await;
    for round in 0..ROUNDS {
        let room = format!("room:{}", (number + round) % 5);
        client.join_with(json!({"room": room, "presence": true, "history": 5})).await;
        client.publish(&room, json!(round)).await;
        client.join_with(json!({"room": "old", "since": first, "presence": true})).await;
        client.leave("old").await;
        client.leave(&room).await;
        for question in ["history", "presence"] {
            http::get(address, &format!("/v1/rooms/{room}/{question}")).send().await.expect(200);
        }
        http::get(address, &format!("/v1/rooms/old/poll?wait=0&since={first}")).send().await.expect(200);
    }
}

/// Connections for reads belonged to the thread that opened them, and a shard's thread opened those for its own clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_asked_redis_read_the_reply_on_its_own_thread() {
    let mut cluster = Cluster::over_redis(1).config(KEEP_ALL).start().await;
    let redis = cluster.redis().address();
    let threads = Threads { process: PathBuf::from(format!("/proc/{}", cluster.nodes[0].pid())), redis };
    let mut instances = BTreeMap::new();
    eventually("each thread has waited", async || {
        instances.extend(threads.waiting());
        THREADS.iter().all(|name| instances.contains_key(*name))
    })
    .await;
    let address = cluster.address(0);
    let items = json!(vec![json!({"room": "old", "data": 1}); MESSAGES]);
    let published = http::post(address, "/v1/publish", &items).send().await.expect(200);
    let first = published[0]["cursor"].as_str().expect("the room has history").to_owned();
    assert_eq!(split(&published[0]["cursor"]).1, 1, "{first}");

    let is_done = Arc::new(AtomicBool::new(false));
    let looks = tokio::spawn(threads.look_until(instances, Arc::clone(&is_done)));
    join_all((0..CLIENTS).map(|number| ask_for_everything(address, number, &first))).await;
    is_done.store(true, Ordering::Relaxed);
    let connections = looks.await.expect("no other thread has connections to Redis");
    assert!(connections.len() > LASTING, "the load opened connections for reads: {connections:?}");
}
