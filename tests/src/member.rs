//! A member that stays: joins rooms, keeps a log of what it saw, and comes back by cursor when its connection ends,
//! as a good client does. Called by the tests under load; the log is for `history`, it never judges by itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::{Client, Event, Refused};
use crate::front::Front;
use crate::history::{MemberLog, Position, Seen};
use crate::load::Timing;
use crate::wait::{eventually, holds_within, patience, ticks, within};

/// What a member is to do.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Where it connects.
    pub front: Front,
    /// Its number: deals the addresses of the front and names the log.
    pub index: usize,
    /// What it joins.
    pub rooms: Vec<String>,
    /// Where the times of sending stand, if latencies are of interest.
    pub timing: Option<Arc<Timing>>,
}

/// A running member.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Mutex<Shared>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Report>,
}

/// What a member tells at its end.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// For the checker.
    pub log: MemberLog,
    /// The node of each of its connections, in order.
    pub nodes: Vec<String>,
    /// The close codes it saw, in order; none where the connection just broke.
    pub closes: Vec<Option<u16>>,
    /// How many `reconnect` frames came.
    pub reconnect_hints: usize,
    /// Errors it was sent.
    pub errors: Vec<String>,
    /// From sending to here, for what was published on another node.
    pub latencies: Vec<Duration>,
}

/// What can be asked while it runs.
#[derive(Debug, Default)]
struct Shared {
    places: HashMap<String, Position>,
    joined: usize,
    connections: usize,
}

/// The fields of all the frames a member looks at.
#[derive(Deserialize)]
struct Wire {
    r#type: String,
    room: Option<String>,
    cursor: Option<String>,
    to: Option<String>,
    code: Option<String>,
    gap: Option<serde_json::Value>,
    data: Option<Payload>,
}

/// What `load` publishes.
#[derive(Deserialize)]
struct Payload {
    n: u64,
    node: String,
}

impl Member {
    /// Starts one and returns once it has joined all its rooms.
    ///
    /// # Panics
    /// When it does not join in time.
    pub async fn start(membership: Membership) -> Self {
        let rooms = membership.rooms.len();
        let name = format!("member {}", membership.index);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = watch::channel(false);
        let state = Life {
            report: Report { log: MemberLog { name: name.clone(), ..MemberLog::default() }, ..Report::default() },
            shared: Arc::clone(&shared),
            attempt: membership.index,
            membership,
        };
        let member = Self { shared, stop, task: tokio::spawn(state.live(stopped)) };
        eventually(&format!("{name} has joined {rooms} rooms"), async || {
            assert!(!member.task.is_finished(), "{name} gave up");
            member.look(|shared| shared.joined) >= rooms
        })
        .await;
        member
    }

    /// Whether it has come to this place, or past it, in a room.
    #[must_use]
    pub fn has_reached(&self, room: &str, place: &Position) -> bool {
        self.look(|shared| {
            shared.places.get(room).is_some_and(|now| now.epoch == place.epoch && now.offset >= place.offset)
        })
    }

    /// How many connections it has had so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.look(|shared| shared.connections)
    }

    /// Ends it and returns what it saw.
    ///
    /// # Panics
    /// When it gave up before.
    pub async fn stop(self) -> Report {
        // A member that has given up has dropped its end; its own panic is the one to show.
        let _ = self.stop.send(true);
        within("the end of a member", self.task).await.expect("the member lived to the end")
    }

    fn look<T>(&self, at: impl FnOnce(&Shared) -> T) -> T {
        at(&self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Waits until all `members` have come to the last place of their rooms; a member that does not is the checker's to
/// report, so this returns after the patience of the tests at the latest.
pub async fn settle(members: &[Member], heads: &BTreeMap<String, Position>) {
    holds_within(patience(), async || {
        members.iter().all(|member| {
            let rooms = member.look(|shared| shared.places.keys().cloned().collect::<Vec<_>>());
            rooms.iter().all(|room| heads.get(room).is_none_or(|head| member.has_reached(room, head)))
        })
    })
    .await;
}

/// Ends all `members` and returns what they saw.
pub async fn stop_all(members: Vec<Member>) -> Vec<Report> {
    let mut reports = Vec::with_capacity(members.len());
    for member in members {
        reports.push(member.stop().await);
    }
    reports
}

struct Life {
    membership: Membership,
    report: Report,
    shared: Arc<Mutex<Shared>>,
    attempt: usize,
}

impl Life {
    async fn live(mut self, mut stopped: watch::Receiver<bool>) -> Report {
        loop {
            let mut client = self.connect().await;
            if self.join(&mut client).await {
                loop {
                    tokio::select! {
                        _ = stopped.changed() => return self.report,
                        event = client.event() => match event {
                            Event::Frame(frame) => self.see(&frame.text),
                            Event::Closed(closed) => {
                                self.report.closes.push(closed.code);
                                break;
                            }
                        },
                    }
                }
            }
            if *stopped.borrow() {
                return self.report;
            }
        }
    }

    /// Tries the addresses in turn until one says welcome.
    async fn connect(&mut self) -> Client {
        let name = self.report.log.name.clone();
        within(&format!("{name} is welcome somewhere"), async {
            let mut tick = ticks(Duration::from_millis(50));
            loop {
                tick.tick().await;
                let address = self.membership.front.address(self.attempt);
                let attempt = timeout(Duration::from_secs(2), Client::try_open(address, "/ws", &[]));
                match attempt.await {
                    Ok(Ok(client)) => {
                        self.report.nodes.push(client.node());
                        lock(&self.shared).connections += 1;
                        return client;
                    }
                    Ok(Err(Refused::Status(_) | Refused::Network(_))) | Err(_) => self.attempt += 1,
                }
            }
        })
        .await
    }

    /// Sends the joins; false when the connection has ended already.
    async fn join(&mut self, client: &mut Client) -> bool {
        for room in &self.membership.rooms {
            let since = lock(&self.shared).places.get(room).map(ToString::to_string);
            let mut command = json!({"type": "join", "room": room});
            if let Some(since) = since {
                command["since"] = json!(since);
            }
            if client.try_send(command.to_string().into()).await.is_err() {
                return false;
            }
        }
        true
    }

    fn see(&mut self, text: &str) {
        let now = Instant::now();
        let wire: Wire = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let room = wire.room.unwrap_or_default();
        let cursor = wire.cursor.as_deref().and_then(Position::parse);
        let seen = match (wire.r#type.as_str(), cursor, wire.data) {
            ("message", Some(at), Some(data)) => {
                self.time(&data, now);
                Seen::Message { at, id: data.n }
            }
            ("joined", Some(at), _) => {
                lock(&self.shared).joined += 1;
                Seen::Joined { at, gap: wire.gap.is_some() }
            }
            ("gap", _, _) => {
                let to = wire.to.as_deref().and_then(Position::parse);
                Seen::Gap { to: to.unwrap_or_else(|| panic!("a gap says where delivery goes on: {text}")) }
            }
            ("reconnect", _, _) => {
                self.report.reconnect_hints += 1;
                return;
            }
            ("error", _, _) => {
                self.report.errors.push(wire.code.unwrap_or_default());
                return;
            }
            _ => panic!("a member in a room with history is not sent {text}"),
        };
        let (Seen::Message { at, .. } | Seen::Joined { at, .. } | Seen::Gap { to: at }) = &seen;
        lock(&self.shared).places.insert(room.clone(), at.clone());
        self.report.log.rooms.entry(room).or_default().push(seen);
    }

    fn time(&mut self, data: &Payload, now: Instant) {
        let Some(timing) = &self.membership.timing else { return };
        if self.report.nodes.last() != Some(&data.node) {
            self.report.latencies.extend(timing.since_sent(data.n, now));
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
