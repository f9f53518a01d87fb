//! The task of a member: connect, join, receive, reconnect. Called by `Member::start`, once for each member.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::state::{Membership, Orders, Outage, Progress, Report, lock};
use crate::history::{Cursor, MemberLog, Seen};
use crate::rng::Rng;
use crate::transport::websocket::WebSocket;
use crate::transport::{Connection, Received, RoomRequest, Transport};
use crate::wait::pause;

/// The longest time that one attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The upper bound to which the wait between two attempts grows.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection on which the server's ping is late by this much counts as dead.
const SILENCE: Duration = Duration::from_secs(5);
/// The time between two pings if `welcome` does not state it. A long poll waits as long.
const PING: Duration = Duration::from_secs(25);
/// The longest interval between two short polls. `next_ms` may advise more in a quiet room than a whole run lasts.
const POLL_PACE: Duration = Duration::from_millis(500);

/// All fields that a member reads, of any frame.
#[derive(Deserialize)]
struct FrameFields<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    room: Option<&'a str>,
    #[serde(borrow)]
    cursor: Option<&'a str>,
    #[serde(borrow)]
    to: Option<&'a str>,
    #[serde(borrow)]
    node: Option<&'a str>,
    after_ms: Option<u64>,
    ping_ms: Option<u64>,
    #[serde(borrow)]
    gap: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<Payload<'a>>,
}

/// The `data` of what `load` publishes.
#[derive(Deserialize)]
struct Payload<'a> {
    n: u64,
    node: &'a str,
}

/// Why a member stops receiving on a connection.
enum End {
    /// The server or the network ended it, or it was silent for too long; the member reconnects.
    Lost,
    /// The member was told to reset it; the member reconnects.
    Reset,
    /// The member was told to stop.
    Stopped,
}

/// The state of a member.
pub(super) struct MemberTask {
    membership: Membership,
    report: Report,
    progress: Arc<Mutex<Progress>>,
    joined: watch::Sender<bool>,
    attempt: usize,
    rng: Rng,
    /// How many rooms were joined on this connection.
    rooms_joined: usize,
    /// When the last connection ended, and when this one received `welcome`.
    away: Option<(Instant, Instant)>,
    /// The time after which the server wants the client to reconnect.
    hint: Option<Duration>,
    ping_every: Duration,
}

impl MemberTask {
    pub(super) fn new(membership: Membership, progress: Arc<Mutex<Progress>>, joined: watch::Sender<bool>) -> Self {
        let name = format!("member {}", membership.index);
        Self {
            report: Report { log: MemberLog { name, ..MemberLog::default() }, ..Report::default() },
            progress,
            joined,
            attempt: membership.index,
            rng: Rng::new(membership.index as u64),
            membership,
            rooms_joined: 0,
            away: None,
            hint: None,
            ping_every: PING,
        }
    }

    pub(super) async fn run(mut self, mut orders: watch::Receiver<Orders>) -> Report {
        let mut stop = orders.clone();
        let mut ended = None;
        loop {
            let mut connection = tokio::select! {
                connection = self.connect(ended) => connection,
                _ = stop.wait_for(|orders| orders.stop) => return self.report,
            };
            let has_joined = self.join(&mut connection).await;
            let end = if has_joined { self.receive(&mut connection, &mut orders).await } else { End::Lost };
            match end {
                End::Lost => drop(connection),
                End::Reset => connection.reset(),
                End::Stopped => return self.report,
            }
            ended = Some(Instant::now());
        }
    }

    /// Tries one address after the other until a connection receives `welcome`.
    async fn connect(&mut self, ended: Option<Instant>) -> Connection {
        let mut wait_max = self.membership.backoff;
        let mut wait = match (ended, self.hint.take()) {
            (None, _) => Duration::ZERO,
            (Some(_), Some(hint)) => hint,
            (Some(_), None) => self.rng.up_to(wait_max),
        };
        loop {
            pause(wait).await;
            if let Ok(Some(connection)) = timeout(CONNECT_MAX, self.try_connect()).await {
                lock(&self.progress).connections += 1;
                self.away = ended.map(|ended| (ended, Instant::now()));
                return connection;
            }
            self.attempt += 1;
            wait_max = (wait_max * 2).min(BACKOFF_MAX.max(self.membership.backoff));
            wait = self.hint.take().unwrap_or_else(|| self.rng.up_to(wait_max));
        }
    }

    async fn try_connect(&mut self) -> Option<Connection> {
        let address = self.membership.target.address(self.attempt);
        let transport = self.membership.transports.of(self.membership.index, self.report.transports.len());
        let mut connection = match transport {
            // Joins by commands, as most WebSocket clients do; the other transports name the rooms in their URL.
            Transport::WebSocket => Connection::WebSocket(Box::new(WebSocket::open(address, "/ws", &[]).await.ok()?)),
            _ => match Connection::open(address, transport, &self.request()).await {
                Ok(connection) => connection,
                Err(refused) => {
                    self.hint = refused.retry_after();
                    return None;
                }
            },
        };
        self.ping_every = PING;
        let mut node = String::new();
        while !transport.polls() {
            match connection.next().await {
                Received::Text(text) => {
                    let welcome = parse(&text);
                    assert_eq!(welcome.r#type, "welcome", "{text}");
                    welcome.node.unwrap_or_default().clone_into(&mut node);
                    self.ping_every = welcome.ping_ms.map_or(PING, Duration::from_millis);
                    break;
                }
                Received::Ended(ended) => {
                    self.hint = ended.reconnect_after;
                    return None;
                }
                // An event stream begins with its reconnection time.
                Received::KeepAlive => {}
            }
        }
        self.report.nodes.push(node);
        self.report.transports.push(transport);
        Some(connection)
    }

    /// Its rooms, each from the cursor that it has reached there.
    fn request(&self) -> RoomRequest {
        let progress = lock(&self.progress);
        let cursors = self.membership.rooms.iter().map(|room| progress.cursors.get(room).map(ToString::to_string));
        let cursors: Vec<String> = cursors.map(Option::unwrap_or_default).collect();
        let since = Some(cursors.join("~")).filter(|_| cursors.iter().any(|cursor| !cursor.is_empty()));
        RoomRequest { rooms: self.membership.rooms.clone(), since, query: String::new(), pace_max: POLL_PACE }
    }

    /// Sends the `join` commands of a WebSocket; false if the connection has ended already.
    async fn join(&mut self, connection: &mut Connection) -> bool {
        self.rooms_joined = 0;
        let Connection::WebSocket(socket) = connection else { return true };
        for room in &self.membership.rooms {
            let since = lock(&self.progress).cursors.get(room).map(ToString::to_string);
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

    async fn receive(&mut self, connection: &mut Connection, orders: &mut watch::Receiver<Orders>) -> End {
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
                received = timeout(self.ping_every + SILENCE, connection.next()) => match received {
                    Ok(Received::Text(text)) => self.take_frame(&text),
                    Ok(Received::KeepAlive) => {}
                    Ok(Received::Ended(ended)) => {
                        self.report.closes.push(ended.code);
                        self.hint = self.hint.take().or(ended.reconnect_after);
                        return End::Lost;
                    }
                    Err(_) => return End::Lost,
                },
            }
        }
    }

    fn take_frame(&mut self, text: &str) {
        let now = Instant::now();
        let frame = parse(text);
        let room = frame.room.unwrap_or_default();
        let cursor = frame.cursor.and_then(Cursor::parse);
        let seen = match (frame.r#type, cursor, frame.data) {
            ("message", Some(at), Some(data)) => {
                self.log_latency(&data, now);
                Seen::Message { at, id: data.n }
            }
            ("joined", Some(at), _) => {
                self.has_joined(now);
                Seen::Joined { at, gap: frame.gap.is_some() }
            }
            ("gap", _, _) => {
                let to = frame.to.and_then(Cursor::parse);
                Seen::Gap { to: to.unwrap_or_else(|| panic!("a gap says up to which cursor it reaches: {text}")) }
            }
            ("reconnect", _, _) => {
                self.report.reconnect_hints += 1;
                self.hint = frame.after_ms.map(Duration::from_millis);
                return;
            }
            // A refused join is one of the things that the checker finds. `close` is followed by the end.
            ("error" | "close", _, _) => return,
            _ => panic!("an unexpected frame for a member of a room with history: {text}"),
        };
        self.log(room, seen, now);
    }

    fn log(&mut self, room: &str, seen: Seen, now: Instant) {
        let (Seen::Message { at, .. } | Seen::Joined { at, .. } | Seen::Gap { to: at }) = &seen;
        let mut progress = lock(&self.progress);
        match progress.cursors.get_mut(room) {
            Some(cursor) => cursor.clone_from(at),
            None => drop(progress.cursors.insert(room.to_owned(), at.clone())),
        }
        match seen {
            Seen::Message { .. } => progress.last_message = Some(now),
            Seen::Gap { .. } | Seen::Joined { gap: true, .. } => {
                self.report.gaps.push(now);
                progress.gaps += 1;
            }
            Seen::Joined { .. } => {}
        }
        drop(progress);
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

    fn log_latency(&mut self, data: &Payload<'_>, now: Instant) {
        let Some(timing) = &self.membership.timing else { return };
        // The node is empty for polls, whose responses do not name it.
        if self.report.nodes.last().is_some_and(|node| !node.is_empty() && node != data.node) {
            self.report.latencies.extend(timing.since_sent(data.n, now));
        }
    }
}

fn parse(text: &str) -> FrameFields<'_> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
