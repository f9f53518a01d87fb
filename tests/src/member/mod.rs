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
use crate::wait::{holds_within, patience, patient, within_time};

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
}

/// Waits until all `members` have reached the last cursor of their rooms. Returns after [`patience`] at the latest: the
/// history checker reports what a member still lacks.
pub async fn settle(members: &[Member], heads: &BTreeMap<String, Cursor>) {
    settle_within(patience(), members, heads).await;
}

/// Like [`settle`], with another limit.
pub async fn settle_within(limit: Duration, members: &[Member], heads: &BTreeMap<String, Cursor>) {
    let mut settled = 0;
    holds_within(limit, async || {
        // A member that has settled stays so: each check begins at the first one that has not.
        while members.get(settled).is_some_and(|member| member.has_settled(heads)) {
            settled += 1;
        }
        settled == members.len()
    })
    .await;
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
