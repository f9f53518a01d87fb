//! A member that stays: it joins rooms, logs what it sees, and resumes by cursor when its connection ends, like a good
//! client: after the time of the server's hint, or after a random and growing wait. Called by the tests under load and
//! the fault runs; the log is for `history`. This file is the handle of a member; `task` is what it does.

mod state;
mod task;
mod transport_choice;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::state::{Orders, Progress, lock};
use self::task::MemberTask;
use crate::history::Cursor;
use crate::wait::{patience, patient, ticks, while_progressing, within_time};

pub use state::{BACKOFF, Membership, Outage, Report};
pub use transport_choice::TransportChoice;

/// The longest time a member may take to join when thousands join at once.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// The handle of a running member.
#[derive(Debug)]
pub struct Member {
    progress: Arc<Mutex<Progress>>,
    orders: watch::Sender<Orders>,
    task: JoinHandle<Report>,
}

impl Member {
    /// Starts a member and returns once it has joined all its rooms.
    ///
    /// # Panics
    /// If it does not join in time.
    pub async fn start(membership: Membership) -> Self {
        let name = format!("member {}", membership.index);
        let progress = Arc::new(Mutex::new(Progress::default()));
        let (orders, received) = watch::channel(Orders::default());
        let (joined, mut is_joined) = watch::channel(false);
        let task = MemberTask::new(membership, Arc::clone(&progress), joined);
        let member = Self { progress, orders, task: tokio::spawn(task.run(received)) };
        let what = format!("{name} has joined its rooms");
        let joined = async { is_joined.wait_for(|joined| *joined).await.is_ok() };
        assert!(within_time(patient(JOIN_MAX), &what, joined).await, "{name} has failed");
        member
    }

    /// How many connections it has had so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.progress).connections
    }

    /// How many gaps it has been told of so far.
    #[must_use]
    pub fn gaps(&self) -> usize {
        lock(&self.progress).gaps
    }

    /// When it received its last message so far.
    #[must_use]
    pub fn last_message(&self) -> Option<Instant> {
        lock(&self.progress).last_message
    }

    /// Makes it end its connection with a RST and reconnect.
    pub fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Ends it and returns its report.
    ///
    /// # Panics
    /// If it has failed.
    pub async fn stop(self) -> Report {
        // A member that has failed has dropped its receiver; `send_modify` ignores that, and the panic of its task is the
        // one that the test shows.
        self.orders.send_modify(|orders| orders.stop = true);
        within_time(patience(), "the end of a member", self.task).await.expect("the member ran to its end")
    }

    fn has_settled(&self, heads: &BTreeMap<String, Cursor>) -> bool {
        let progress = lock(&self.progress);
        progress.cursors.keys().all(|room| heads.get(room).is_none_or(|head| progress.has_reached(room, head)))
    }

    /// Changes with each message and each connection.
    fn progress(&self) -> u64 {
        let progress = lock(&self.progress);
        let offsets = progress.cursors.values().map(|cursor| cursor.offset);
        offsets.fold(progress.connections as u64, u64::wrapping_add)
    }
}

/// Waits until all `members` have reached the last cursor of their rooms. Returns earlier if none of them gets anything for
/// [`patience`]: the history checker reports what a member still lacks.
pub async fn settle(members: &[Member], heads: &BTreeMap<String, Cursor>) {
    settle_within(patience(), members, heads).await;
}

/// Like [`settle`], with another limit on the time without progress.
pub async fn settle_within(limit: Duration, members: &[Member], heads: &BTreeMap<String, Cursor>) {
    let mut tick = ticks(Duration::from_millis(20));
    let settled = async {
        // A member that has settled stays so: one after the other is waited for.
        for member in members {
            while !member.has_settled(heads) {
                tick.tick().await;
            }
        }
    };
    let progress = || members.iter().map(Member::progress).fold(0, u64::wrapping_add);
    while_progressing(limit, progress, settled).await;
}

/// Ends all `members` and returns their reports.
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
