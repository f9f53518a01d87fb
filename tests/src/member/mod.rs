//! A member that stays: joins rooms, keeps a log of what it saw, and comes back by cursor when its connection ends,
//! as a good client does: after the server's hint, else after a random wait that grows. Called by the tests under load
//! and the fault runs; the log is for `history`, it never judges by itself. `task` is what it does.

mod task;
mod transport_choice;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::{MemberLog, Position};
use crate::load::Timing;
use crate::target::Target;
use crate::transport::Transport;
use crate::wait::{holds_within, patience, patient, within_time};

pub use transport_choice::TransportChoice;

/// How long a member may take to join when thousands do.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// What a member is to do.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Where it connects.
    pub target: Target,
    /// Its number: deals the addresses of the target and names the log.
    pub index: usize,
    /// What it joins.
    pub rooms: Vec<String>,
    /// Where the times of sending stand, if latencies are of interest.
    pub timing: Option<Arc<Timing>>,
    /// The first wait before a reconnect without a hint is random up to this; it doubles up to a second, or this if it
    /// is longer.
    pub backoff: Duration,
    /// What carries it.
    pub transports: TransportChoice,
}

/// What `fanfare sub` waits at most before its first reconnect.
pub const BACKOFF: Duration = Duration::from_millis(200);

/// A running member.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Mutex<Shared>>,
    orders: watch::Sender<Orders>,
    task: JoinHandle<Report>,
}

/// What a member is told while it lives.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// How often it was told to reset its connection.
    resets: u64,
    stop: bool,
}

/// What a member tells at its end.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// For the checker.
    pub log: MemberLog,
    /// The node of each of its connections, in order; empty for polls, which are not told.
    pub nodes: Vec<String>,
    /// The transport of each of its connections, in order.
    pub transports: Vec<Transport>,
    /// The close codes it saw, in order; none where the connection just broke.
    pub closes: Vec<Option<u16>>,
    /// How many `reconnect` frames came.
    pub reconnect_hints: usize,
    /// Errors it was sent.
    pub errors: Vec<String>,
    /// From sending to here, for what was published on another node.
    pub latencies: Vec<Duration>,
    /// The times it was away, in order.
    pub outages: Vec<Outage>,
    /// When it was told that something is missing.
    pub gaps: Vec<Instant>,
    /// When the last message came.
    pub last_message: Option<Instant>,
}

/// One time that a member was away.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// The connection had ended.
    pub ended: Instant,
    /// The next one was welcome.
    pub welcome: Instant,
    /// All its rooms were joined again.
    pub joined: Instant,
}

/// What can be asked while it runs.
#[derive(Debug, Default)]
struct Shared {
    places: HashMap<String, Position>,
    connections: usize,
    gaps: usize,
    last_message: Option<Instant>,
}

impl Member {
    /// Starts one and returns once it has joined all its rooms.
    ///
    /// # Panics
    /// When it does not join in time.
    pub async fn start(membership: Membership) -> Self {
        let name = format!("member {}", membership.index);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (orders, received) = watch::channel(Orders::default());
        let (joined, mut is_joined) = watch::channel(false);
        let task = task::MemberTask::new(membership, Arc::clone(&shared), joined);
        let member = Self { shared, orders, task: tokio::spawn(task.live(received)) };
        let what = format!("{name} has joined its rooms");
        let joined = async { is_joined.wait_for(|joined| *joined).await.is_ok() };
        assert!(within_time(patient(JOIN_MAX), &what, joined).await, "{name} gave up");
        member
    }

    /// Whether it has come to this place, or past it, in a room.
    #[must_use]
    pub fn has_reached(&self, room: &str, place: &Position) -> bool {
        has_reached(&self.look(), room, place)
    }

    /// How many connections it has had so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.look().connections
    }

    /// How many gaps it was told so far.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.look().gaps
    }

    /// When the last message came so far.
    #[must_use]
    pub fn last_message(&self) -> Option<Instant> {
        self.look().last_message
    }

    /// Has it end its connection with a RST and come back.
    pub fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Ends it and returns what it saw.
    ///
    /// # Panics
    /// When it gave up before.
    pub async fn stop(self) -> Report {
        // A member that has given up has dropped its end; its own panic is the one to show.
        self.orders.send_modify(|orders| orders.stop = true);
        within_time(patience(), "the end of a member", self.task).await.expect("the member lived to the end")
    }

    fn look(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn has_settled(&self, heads: &BTreeMap<String, Position>) -> bool {
        let shared = self.look();
        shared.places.keys().all(|room| heads.get(room).is_none_or(|head| has_reached(&shared, room, head)))
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_reached(shared: &Shared, room: &str, place: &Position) -> bool {
    shared.places.get(room).is_some_and(|now| now.epoch == place.epoch && now.offset >= place.offset)
}

/// Waits until all `members` have come to the last place of their rooms; a member that does not is the checker's to
/// report, so this returns after the patience of the tests at the latest.
pub async fn settle(members: &[Member], heads: &BTreeMap<String, Position>) {
    settle_within(patience(), members, heads).await;
}

/// As [`settle`], with another limit.
pub async fn settle_within(limit: Duration, members: &[Member], heads: &BTreeMap<String, Position>) {
    let mut settled = 0;
    holds_within(limit, async || {
        // Who has arrived stays there: only the first one that has not is looked at.
        while members.get(settled).is_some_and(|member| member.has_settled(heads)) {
            settled += 1;
        }
        settled == members.len()
    })
    .await;
}

/// Ends all `members` and returns what they saw.
pub async fn stop_all(members: Vec<Member>) -> Vec<Report> {
    for member in &members {
        member.orders.send_modify(|orders| orders.stop = true);
    }
    let mut reports = Vec::with_capacity(members.len());
    for member in members {
        reports.push(member.stop().await);
    }
    reports
}
