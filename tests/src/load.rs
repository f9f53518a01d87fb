//! Publishers that make a load. Each numbers its publications in `data`, has a limited number of them unanswered at a
//! time, and retries each with the same idempotency key until it is acknowledged. Called by the tests under load. Only
//! acknowledged publications are counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::Client;
use crate::history::{Cursor, Published};
use crate::target::Target;
use crate::wait::{patient, ticks, while_progressing, within_time};

/// A load without an acknowledgement for this long has stalled. Longer than Redis is away in any test.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The time without a reply after which a publisher gives up its connection.
const SILENCE: Duration = Duration::from_secs(5);

/// What a load publishes, and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the publishers connect, each at the next address.
    pub target: Target,
    /// How many publishers there are.
    pub publishers: usize,
    /// The rooms; each publication goes to the next one.
    pub rooms: Vec<String>,
    /// How many publications there are in all.
    pub total: u64,
    /// How many publications each publisher has unanswered at most.
    pub window: usize,
    /// The shortest time between two publications of one publisher; zero to send as fast as acknowledgements come.
    pub pace: Duration,
}

/// A publication with its number in the order of all acknowledgements.
type Acknowledged = (u64, Published);

/// The time at which each publication was sent.
#[derive(Debug)]
pub struct Timing {
    start: Instant,
    /// Microseconds since `start`; zero for a publication that has not been sent.
    sent_us: Vec<AtomicU64>,
}

/// A load that is running.
#[derive(Debug)]
pub struct Running {
    /// How many publications were acknowledged so far.
    acknowledged: Arc<AtomicU64>,
    /// Whether the publishers have to stop sending new publications.
    winds_down: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Acknowledged>>>,
}

impl Timing {
    /// For publications numbered `0..total`.
    #[must_use]
    pub fn new(total: u64) -> Arc<Self> {
        let sent_us = (0..total).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { start: Instant::now(), sent_us })
    }

    fn sent(&self, n: u64) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        if let Some(slot) = self.slot(n) {
            // The first attempt counts, so that a retry does not make a slow publication look fast.
            let _ = slot.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How long before `now` publication `n` was sent.
    #[must_use]
    pub fn since_sent(&self, n: u64, now: Instant) -> Option<Duration> {
        let sent = self.slot(n)?.load(Ordering::Relaxed);
        (sent > 0).then(|| now.saturating_duration_since(self.start + Duration::from_micros(sent)))
    }

    fn slot(&self, n: u64) -> Option<&AtomicU64> {
        self.sent_us.get(usize::try_from(n).ok()?)
    }
}

impl Load {
    /// Starts it.
    #[must_use]
    pub fn start(self) -> Running {
        self.start_timed(&Timing::new(0))
    }

    /// Starts it and notes the times in `timing`, from which members compute latencies.
    #[must_use]
    pub fn start_timed(self, timing: &Arc<Timing>) -> Running {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let winds_down = Arc::new(AtomicBool::new(false));
        let load = Arc::new(self);
        let publisher = |index| {
            let numbers = (index as u64..load.total).step_by(load.publishers).collect();
            let publisher = Publisher {
                load: Arc::clone(&load),
                timing: Arc::clone(timing),
                acknowledged: Arc::clone(&acknowledged),
                winds_down: Arc::clone(&winds_down),
                attempt: index,
                waiting: numbers,
                unanswered: BTreeSet::new(),
                done: Vec::new(),
            };
            tokio::spawn(publisher.run())
        };
        let tasks = (0..load.publishers).map(publisher).collect();
        Running { acknowledged, winds_down, tasks }
    }
}

impl Running {
    /// How many publications were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends it early: publications that were sent may still be acknowledged, and no new ones are sent.
    pub fn wind_down(&self) {
        self.winds_down.store(true, Ordering::Relaxed);
    }

    /// Waits until at least `count` publications are acknowledged.
    ///
    /// # Panics
    /// If the load stalls.
    pub async fn reaches(&self, count: u64) {
        let mut tick = ticks(Duration::from_millis(20));
        let reached = async {
            while self.acknowledged() < count {
                tick.tick().await;
            }
        };
        let reached = while_progressing(patient(STALLED_AFTER), || self.acknowledged(), reached).await;
        assert!(reached.is_some(), "the load stalled after {} of {count} acknowledgements", self.acknowledged());
    }

    /// Waits until all publications are acknowledged and returns them in the order of their acknowledgements.
    ///
    /// # Panics
    /// If the load stalls, or a publisher was refused for good.
    pub async fn finish(self) -> Vec<Published> {
        let acknowledged = Arc::clone(&self.acknowledged);
        let progress = || acknowledged.load(Ordering::Relaxed);
        let finished = while_progressing(patient(STALLED_AFTER), progress, self.published()).await;
        finished.unwrap_or_else(|| panic!("the load stalled after {} acknowledgements", progress()))
    }

    /// Like [`Running::finish`], with a limit on the whole time.
    ///
    /// # Panics
    /// If that takes too long, or a publisher was refused for good.
    pub async fn finish_within(self, limit: Duration) -> Vec<Published> {
        within_time(patient(limit), "all publications are acknowledged", self.published()).await
    }

    async fn published(self) -> Vec<Published> {
        let mut published = Vec::new();
        for task in self.tasks {
            published.extend(task.await.expect("the publisher ran to its end"));
        }
        published.sort_unstable_by_key(|(sequence, _)| *sequence);
        published.into_iter().map(|(_, publication)| publication).collect()
    }
}

/// The last cursor of each room, given the publications in the order of their acknowledgements.
#[must_use]
pub fn heads(published: &[Published]) -> BTreeMap<String, Cursor> {
    let mut heads: BTreeMap<String, Cursor> = BTreeMap::new();
    for publication in published {
        let head = heads.entry(publication.room.clone()).or_insert_with(|| publication.at.clone());
        if head.epoch != publication.at.epoch || head.offset < publication.at.offset {
            *head = publication.at.clone();
        }
    }
    heads
}

/// One publisher of a load.
struct Publisher {
    load: Arc<Load>,
    timing: Arc<Timing>,
    acknowledged: Arc<AtomicU64>,
    winds_down: Arc<AtomicBool>,
    attempt: usize,
    /// The publications that are to be sent, also those to be sent again, in order.
    waiting: VecDeque<u64>,
    unanswered: BTreeSet<u64>,
    done: Vec<Acknowledged>,
}

impl Publisher {
    async fn run(mut self) -> Vec<Acknowledged> {
        let mut tick = ticks(Duration::from_millis(50));
        while self.is_busy() {
            tick.tick().await;
            let address = self.load.target.address(self.attempt);
            let attempt = timeout(Duration::from_secs(2), Client::try_open(address, "/ws", &[]));
            if let Ok(Ok(client)) = attempt.await {
                self.publish_over(client).await;
            }
            // What had no reply is sent again, over another connection and with the same key.
            self.attempt += 1;
            for n in std::mem::take(&mut self.unanswered).into_iter().rev() {
                self.waiting.push_front(n);
            }
        }
        self.done
    }

    /// Whether something has to be sent or awaited. A load that winds down awaits only what was sent.
    fn is_busy(&mut self) -> bool {
        if self.winds_down.load(Ordering::Relaxed) {
            self.waiting.clear();
        }
        !self.waiting.is_empty() || !self.unanswered.is_empty()
    }

    /// Publishes until everything is done or the connection ends.
    async fn publish_over(&mut self, mut client: Client) {
        let node = client.node();
        let mut pace = ticks(self.load.pace.max(Duration::from_micros(1)));
        let mut silence = ticks(SILENCE);
        silence.reset();
        while self.is_busy() {
            let may_send = !self.waiting.is_empty() && self.unanswered.len() < self.load.window;
            tokio::select! {
                _ = pace.tick(), if may_send => {
                    let Some(n) = self.waiting.pop_front() else { continue };
                    self.unanswered.insert(n);
                    self.timing.sent(n);
                    if client.try_send(self.command(n, &node).to_string().into()).await.is_err() {
                        return;
                    }
                }
                next = client.try_next() => match next {
                    Ok(frame) => {
                        silence.reset();
                        self.take_reply(&frame.json);
                    }
                    Err(_) => return,
                },
                // Every publish is answered within a second, so a silent connection is a lost one.
                _ = silence.tick() => return,
            }
        }
    }

    fn room(&self, n: u64) -> &str {
        &self.load.rooms[usize::try_from(n).unwrap_or_default() % self.load.rooms.len()]
    }

    fn command(&self, n: u64, node: &str) -> Value {
        let room = self.room(n);
        json!({"type": "publish", "id": n, "room": room, "key": format!("n{n}"), "data": {"n": n, "node": node}})
    }

    fn take_reply(&mut self, reply: &Value) {
        match reply["type"].as_str() {
            Some("published") => {
                let n = reply["id"].as_u64().expect("an acknowledgement has the id of its command");
                let at = reply["cursor"].as_str().and_then(Cursor::parse);
                let at =
                    at.unwrap_or_else(|| panic!("an acknowledgement in a room with history has a cursor: {reply}"));
                if self.unanswered.remove(&n) {
                    let sequence = self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    self.done.push((sequence, Published { room: self.room(n).to_owned(), id: n, at }));
                }
            }
            Some("error") => {
                assert_eq!(reply["retryable"], true, "refused without a retry: {reply}");
                if let Some(n) = reply["id"].as_u64()
                    && self.unanswered.remove(&n)
                {
                    self.waiting.push_back(n);
                }
            }
            _ => {}
        }
    }
}

/// The value below which `percent` of the sorted list lie; `None` for an empty list.
#[must_use]
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let index = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
    sorted.get(index).copied()
}
