//! What a member does all its life: connect, join, listen, come back. Called by `Member::start`, one task each.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::{Membership, Orders, Outage, Report, Shared, lock};
use crate::history::{MemberLog, Position, Seen};
use crate::rng::Rng;
use crate::socket::{Incoming, Socket};
use crate::wait::pause;

/// How long one attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The ceiling of the wait between two attempts, unless the first one is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection on which the server's ping is late by this much is dead.
const SILENCE: Duration = Duration::from_secs(5);

/// The fields of all the frames a member looks at.
#[derive(Deserialize)]
struct Wire<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    room: Option<&'a str>,
    #[serde(borrow)]
    cursor: Option<&'a str>,
    #[serde(borrow)]
    to: Option<&'a str>,
    #[serde(borrow)]
    code: Option<&'a str>,
    #[serde(borrow)]
    node: Option<&'a str>,
    after_ms: Option<u64>,
    ping_ms: Option<u64>,
    #[serde(borrow)]
    gap: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    data: Option<Payload<'a>>,
}

/// What `load` publishes.
#[derive(Deserialize)]
struct Payload<'a> {
    n: u64,
    node: &'a str,
}

/// How a connection ended.
enum End {
    /// By the server, by the network or by silence: come back.
    Lost,
    /// By order, with a RST: come back.
    Reset,
    /// The member is to stop.
    Stopped,
}

/// A member's state.
pub(super) struct Life {
    membership: Membership,
    report: Report,
    shared: Arc<Mutex<Shared>>,
    joined: watch::Sender<bool>,
    attempt: usize,
    rng: Rng,
    /// Rooms joined on this connection.
    rooms_joined: usize,
    /// The end of the last connection and the welcome of this one.
    away: Option<(Instant, Instant)>,
    /// When the server wants it back.
    hint: Option<Duration>,
    ping_every: Duration,
}

impl Life {
    pub(super) fn new(membership: Membership, shared: Arc<Mutex<Shared>>, joined: watch::Sender<bool>) -> Self {
        let name = format!("member {}", membership.index);
        Self {
            report: Report { log: MemberLog { name, ..MemberLog::default() }, ..Report::default() },
            shared,
            joined,
            attempt: membership.index,
            rng: Rng::new(membership.index as u64),
            membership,
            rooms_joined: 0,
            away: None,
            hint: None,
            ping_every: Duration::from_secs(25),
        }
    }

    pub(super) async fn live(mut self, mut orders: watch::Receiver<Orders>) -> Report {
        let mut stop = orders.clone();
        let mut ended = None;
        loop {
            let mut socket = tokio::select! {
                socket = self.connect(ended) => socket,
                _ = stop.wait_for(|orders| orders.stop) => return self.report,
            };
            let end =
                if self.join(&mut socket).await { self.listen(&mut socket, &mut orders).await } else { End::Lost };
            match end {
                End::Lost => drop(socket),
                End::Reset => socket.reset(),
                End::Stopped => return self.report,
            }
            ended = Some(Instant::now());
        }
    }

    /// Tries the addresses in turn until one says welcome.
    async fn connect(&mut self, ended: Option<Instant>) -> Socket {
        let mut ceiling = self.membership.backoff;
        let mut wait = match (ended, self.hint.take()) {
            (None, _) => Duration::ZERO,
            (Some(_), Some(hint)) => hint,
            (Some(_), None) => self.rng.up_to(ceiling),
        };
        loop {
            pause(wait).await;
            if let Ok(Some(socket)) = timeout(CONNECT_MAX, self.try_connect()).await {
                self.away = ended.map(|ended| (ended, Instant::now()));
                return socket;
            }
            self.attempt += 1;
            ceiling = (ceiling * 2).min(BACKOFF_MAX.max(self.membership.backoff));
            wait = self.rng.up_to(ceiling);
        }
    }

    async fn try_connect(&mut self) -> Option<Socket> {
        let address = self.membership.front.address(self.attempt);
        let mut socket = Socket::open(address, "/ws", &[]).await.ok()?;
        let Incoming::Text(text) = socket.next().await else { return None };
        let welcome = read(&text);
        assert_eq!(welcome.r#type, "welcome", "{text}");
        self.report.nodes.push(welcome.node.unwrap_or_default().to_owned());
        self.ping_every = Duration::from_millis(welcome.ping_ms.unwrap_or(25_000));
        lock(&self.shared).connections += 1;
        Some(socket)
    }

    /// Sends the joins; false when the connection has ended already.
    async fn join(&mut self, socket: &mut Socket) -> bool {
        self.rooms_joined = 0;
        for room in &self.membership.rooms {
            let since = lock(&self.shared).places.get(room).map(ToString::to_string);
            let mut command = json!({"type": "join", "room": room});
            if let Some(since) = since {
                command["since"] = json!(since);
            }
            if socket.send(Message::text(command.to_string())).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn listen(&mut self, socket: &mut Socket, orders: &mut watch::Receiver<Orders>) -> End {
        let resets = orders.borrow_and_update().resets;
        loop {
            tokio::select! {
                changed = orders.changed() => {
                    let orders = orders.borrow_and_update();
                    if changed.is_err() || orders.stop {
                        return End::Stopped;
                    }
                    if orders.resets != resets {
                        return End::Reset;
                    }
                }
                incoming = timeout(self.ping_every + SILENCE, socket.next()) => match incoming {
                    Ok(Incoming::Text(text)) => self.see(&text),
                    Ok(Incoming::Ping | Incoming::Pong) => {}
                    Ok(Incoming::Closed(closed)) => {
                        self.report.closes.push(closed.code);
                        return End::Lost;
                    }
                    Err(_) => return End::Lost,
                },
            }
        }
    }

    fn see(&mut self, text: &str) {
        let now = Instant::now();
        let wire = read(text);
        let room = wire.room.unwrap_or_default();
        let cursor = wire.cursor.and_then(Position::parse);
        let seen = match (wire.r#type, cursor, wire.data) {
            ("message", Some(at), Some(data)) => {
                self.time(&data, now);
                Seen::Message { at, id: data.n }
            }
            ("joined", Some(at), _) => {
                self.has_joined(now);
                Seen::Joined { at, gap: wire.gap.is_some() }
            }
            ("gap", _, _) => {
                let to = wire.to.and_then(Position::parse);
                Seen::Gap { to: to.unwrap_or_else(|| panic!("a gap says where delivery goes on: {text}")) }
            }
            ("reconnect", _, _) => {
                self.report.reconnect_hints += 1;
                self.hint = wire.after_ms.map(Duration::from_millis);
                return;
            }
            ("error", _, _) => {
                self.report.errors.push(wire.code.unwrap_or_default().to_owned());
                return;
            }
            _ => panic!("a member in a room with history is not sent {text}"),
        };
        self.note(room, seen, now);
    }

    fn note(&mut self, room: &str, seen: Seen, now: Instant) {
        let (Seen::Message { at, .. } | Seen::Joined { at, .. } | Seen::Gap { to: at }) = &seen;
        let mut shared = lock(&self.shared);
        match shared.places.get_mut(room) {
            Some(place) => place.clone_from(at),
            None => drop(shared.places.insert(room.to_owned(), at.clone())),
        }
        match seen {
            Seen::Message { .. } => {
                self.report.last_message = Some(now);
                shared.last_message = Some(now);
            }
            Seen::Gap { .. } | Seen::Joined { gap: true, .. } => {
                self.report.gaps.push(now);
                shared.gaps += 1;
            }
            Seen::Joined { .. } => {}
        }
        drop(shared);
        match self.report.log.rooms.get_mut(room) {
            Some(log) => log.push(seen),
            None => drop(self.report.log.rooms.insert(room.to_owned(), vec![seen])),
        }
    }

    fn has_joined(&mut self, now: Instant) {
        self.rooms_joined += 1;
        if self.rooms_joined == self.membership.rooms.len() {
            self.joined.send_replace(true);
            if let Some((ended, welcome)) = self.away.take() {
                self.report.outages.push(Outage { ended, welcome, joined: now });
            }
        }
    }

    fn time(&mut self, data: &Payload<'_>, now: Instant) {
        let Some(timing) = &self.membership.timing else { return };
        if self.report.nodes.last().is_none_or(|node| node != data.node) {
            self.report.latencies.extend(timing.since_sent(data.n, now));
        }
    }
}

fn read(text: &str) -> Wire<'_> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
