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
use crate::socket::Socket;
use crate::transport::{Connection, Received, RoomRequest, Transport};
use crate::wait::pause;

/// How long one attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The ceiling of the wait between two attempts, unless the first one is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection on which the server's ping is late by this much is dead.
const SILENCE: Duration = Duration::from_secs(5);
/// The time between two signs of life where `welcome` does not say it; a long poll waits as long.
const PING: Duration = Duration::from_secs(25);
/// Between two short polls at most, whatever the server advises: a run is shorter than its advice for a quiet room.
const POLL_PACE: Duration = Duration::from_millis(500);

/// The fields of all the frames a member looks at.
#[derive(Deserialize)]
struct HttpConnection<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    room: Option<&'a str>,
    #[serde(borrow)]
    cursor: Option<&'a str>,
    #[serde(borrow)]
    to: Option<&'a str>,
    /// The text of an error, or the number of a close.
    #[serde(borrow)]
    code: Option<&'a serde_json::value::RawValue>,
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
pub(super) struct MemberTask {
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

impl MemberTask {
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
            ping_every: PING,
        }
    }

    pub(super) async fn live(mut self, mut orders: watch::Receiver<Orders>) -> Report {
        let mut stop = orders.clone();
        let mut ended = None;
        loop {
            let mut connection = tokio::select! {
                connection = self.connect(ended) => connection,
                _ = stop.wait_for(|orders| orders.stop) => return self.report,
            };
            let end = if self.join(&mut connection).await {
                self.listen(&mut connection, &mut orders).await
            } else {
                End::Lost
            };
            match end {
                End::Lost => drop(connection),
                End::Reset => connection.reset(),
                End::Stopped => return self.report,
            }
            ended = Some(Instant::now());
        }
    }

    /// Tries the addresses in turn until one says welcome.
    async fn connect(&mut self, ended: Option<Instant>) -> Connection {
        let mut ceiling = self.membership.backoff;
        let mut wait = match (ended, self.hint.take()) {
            (None, _) => Duration::ZERO,
            (Some(_), Some(hint)) => hint,
            (Some(_), None) => self.rng.up_to(ceiling),
        };
        loop {
            pause(wait).await;
            if let Ok(Some(connection)) = timeout(CONNECT_MAX, self.try_connect()).await {
                lock(&self.shared).connections += 1;
                self.away = ended.map(|ended| (ended, Instant::now()));
                return connection;
            }
            self.attempt += 1;
            ceiling = (ceiling * 2).min(BACKOFF_MAX.max(self.membership.backoff));
            wait = self.hint.take().unwrap_or_else(|| self.rng.up_to(ceiling));
        }
    }

    async fn try_connect(&mut self) -> Option<Connection> {
        let address = self.membership.target.address(self.attempt);
        let transport = self.membership.transports.of(self.membership.index, self.report.transports.len());
        let mut connection = match transport {
            // Joins by frames, as most clients do; the others cannot.
            Transport::WebSocket => Connection::WebSocket(Box::new(Socket::open(address, "/ws", &[]).await.ok()?)),
            _ => match Connection::open(address, transport, &self.asks()).await {
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
                    let welcome = read(&text);
                    assert_eq!(welcome.r#type, "welcome", "{text}");
                    welcome.node.unwrap_or_default().clone_into(&mut node);
                    self.ping_every = welcome.ping_ms.map_or(PING, Duration::from_millis);
                    break;
                }
                Received::Ended(ended) => {
                    self.hint = ended.after;
                    return None;
                }
                // The reconnection time of an event stream.
                Received::KeepAlive => {}
            }
        }
        self.report.nodes.push(node);
        self.report.transports.push(transport);
        Some(connection)
    }

    /// Its rooms, each from where it stands there.
    fn asks(&self) -> RoomRequest {
        let shared = lock(&self.shared);
        let places = self.membership.rooms.iter().map(|room| shared.places.get(room).map(ToString::to_string));
        let places: Vec<String> = places.map(Option::unwrap_or_default).collect();
        let since = Some(places.join("~")).filter(|_| places.iter().any(|place| !place.is_empty()));
        RoomRequest { rooms: self.membership.rooms.clone(), since, query: String::new(), pace_max: POLL_PACE }
    }

    /// Sends the joins where the URL has not said them; false when the connection has ended already.
    async fn join(&mut self, connection: &mut Connection) -> bool {
        self.rooms_joined = 0;
        let Connection::WebSocket(socket) = connection else { return true };
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

    async fn listen(&mut self, connection: &mut Connection, orders: &mut watch::Receiver<Orders>) -> End {
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
                heard = timeout(self.ping_every + SILENCE, connection.next()) => match heard {
                    Ok(Received::Text(text)) => self.see(&text),
                    Ok(Received::KeepAlive) => {}
                    Ok(Received::Ended(ended)) => {
                        self.report.closes.push(ended.code);
                        self.hint = self.hint.take().or(ended.after);
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
                let code = wire.code.map(|code| code.get().trim_matches('"').to_owned());
                self.report.errors.push(code.unwrap_or_default());
                return;
            }
            // The end of a one-way transport says itself with the end.
            ("close", _, _) => return,
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
        // A poll does not know where it was answered.
        if self.report.nodes.last().is_some_and(|node| !node.is_empty() && node != data.node) {
            self.report.latencies.extend(timing.since_sent(data.n, now));
        }
    }
}

fn read(text: &str) -> HttpConnection<'_> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
