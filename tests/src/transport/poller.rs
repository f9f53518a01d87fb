//! A client that polls on and on, over one kept connection while the server keeps it, and tells what it gets as the
//! frames a WebSocket would have: polls have no `joined` and no `gap`, so those are put together from the answers. Called
//! by `line`; it never comes back after an answer that is none.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::http_connection::{Head, HttpConnection};
use super::poll::PollResponse;
use super::{Ended, Refused, RoomRequest, Transport};
use crate::history::Position;
use crate::wait::pause;

/// What a poller is at.
#[derive(Debug)]
enum State {
    /// Waits until it is time.
    Due(Instant),
    /// Waits for the head of an answer.
    Asked,
    /// Reads the body of an answer.
    Reading(Head, Vec<u8>),
}

/// See the module's head.
#[derive(Debug)]
pub struct Poller {
    address: SocketAddr,
    transport: Transport,
    request: RoomRequest,
    /// The cursor of the last answer, or what it began with.
    since: Option<String>,
    session: Option<String>,
    is_present: bool,
    wire: HttpConnection,
    /// Whether something was answered on this connection: a kept one may be closed just when the next poll is sent.
    was_answered: bool,
    state: State,
    pending: VecDeque<String>,
    is_first: bool,
}

/// The fields of a message that are looked at.
#[derive(Deserialize)]
struct Place {
    room: String,
    cursor: String,
}

impl Poller {
    /// Sends the first poll.
    pub(super) async fn open(
        address: SocketAddr,
        transport: Transport,
        request: &RoomRequest,
    ) -> Result<Self, Refused> {
        let wire = HttpConnection::connect(address).await.map_err(Refused::network)?;
        let mut polling = Self {
            address,
            transport,
            since: request.since.clone(),
            request: request.clone(),
            session: None,
            is_present: false,
            wire,
            was_answered: false,
            state: State::Due(Instant::now()),
            pending: VecDeque::new(),
            is_first: true,
        };
        polling.send().await.map_err(Refused::network)?;
        Ok(polling)
    }

    /// From now on repeats the session of the first answer: it is present.
    pub fn keep_session(&mut self) {
        self.is_present = true;
    }

    /// The secret of the last answer.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The cursor after everything that was handed out; none in the middle of an answer.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        if self.pending.is_empty() { self.since.as_deref() } else { None }
    }

    /// A text, or nothing for an answer without any; may be given up and begun again.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Ended> {
        loop {
            if let Some(text) = self.pending.pop_front() {
                return Ok(Some(text));
            }
            match &mut self.state {
                State::Due(at) => {
                    pause(at.saturating_duration_since(Instant::now())).await;
                    self.send().await.map_err(Ended::network)?;
                }
                State::Asked => match self.wire.head().await {
                    Ok(head) => self.state = State::Reading(head, Vec::new()),
                    Err(_) if self.was_answered => self.on_a_new_wire().await.map_err(Ended::network)?,
                    Err(error) => return Err(Ended::network(error)),
                },
                State::Reading(head, body) => match self.wire.piece().await.map_err(Ended::network)? {
                    Some(piece) => body.extend_from_slice(&piece),
                    None => {
                        let text = String::from_utf8_lossy(body).into_owned();
                        if head.status != 200 {
                            let reply = crate::http::Reply { status: head.status, headers: head.headers.clone(), text };
                            return Err(Ended::refused(&reply));
                        }
                        self.was_answered = true;
                        self.digest(&PollResponse::parse(&text));
                        if self.pending.is_empty() {
                            return Ok(None);
                        }
                    }
                },
            }
        }
    }

    async fn send(&mut self) -> std::io::Result<()> {
        if !self.wire.is_kept() {
            return self.on_a_new_wire().await;
        }
        let path = self.path();
        self.state = State::Asked;
        match self.wire.get(&path, &[]).await {
            Err(_) if self.was_answered => self.on_a_new_wire().await,
            done => done,
        }
    }

    async fn on_a_new_wire(&mut self) -> std::io::Result<()> {
        self.was_answered = false;
        self.wire = HttpConnection::connect(self.address).await?;
        self.state = State::Asked;
        let path = self.path();
        self.wire.get(&path, &[]).await
    }

    fn path(&self) -> String {
        let mut query = self.request.query.clone();
        let mut add = |part: &str| {
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(part);
        };
        if self.transport == Transport::ShortPoll {
            add("wait=0");
        }
        if let Some(session) = self.session.as_ref().filter(|_| self.is_present) {
            add(&format!("session={session}"));
        }
        // `last` is for the first poll: with a place it means nothing.
        self.request.clone().with(&query).path(self.transport, self.since.as_deref())
    }

    /// Turns an answer into texts, and sees when to request again.
    fn digest(&mut self, answer: &PollResponse) {
        let cursor = answer.cursor().to_owned();
        let messages: Vec<(Place, &str)> = answer.messages().map(|text| (place(text), text)).collect();
        let parts: Vec<&str> = cursor.split('~').collect();
        assert_eq!(parts.len(), self.request.rooms.len(), "a part of the cursor for each room: {cursor}");
        let since: Vec<String> = self.since.iter().flat_map(|since| since.split('~')).map(str::to_owned).collect();
        for (number, room) in self.request.rooms.iter().enumerate() {
            let first = messages.iter().find(|(place, _)| place.room == *room);
            // Before the first message of the answer, or where the answer says.
            let begins = first.map_or_else(|| parts[number].to_owned(), |(place, _)| before(&place.cursor));
            let gap = answer.gap.as_ref().and_then(|gap| gap.get(room));
            let since = since.get(number).filter(|part| !part.is_empty());
            self.pending.extend(told(
                self.is_first,
                room,
                since,
                &begins,
                gap.map(|gap| json!({"missed": gap.missed})),
            ));
        }
        self.pending.extend(messages.iter().map(|(_, text)| (*text).to_owned()));
        self.is_first = false;
        self.since = Some(cursor);
        self.session.get_or_insert_with(|| answer.session.clone());
        let pace = match (answer.more, self.transport) {
            (false, Transport::ShortPoll) => Duration::from_millis(answer.next_ms).min(self.request.pace_max),
            _ => Duration::ZERO,
        };
        self.state = State::Due(Instant::now() + pace);
    }

    /// Ends the connection with a RST.
    pub(super) fn reset(self) {
        self.wire.reset();
    }
}

/// What a WebSocket would have been told about this room, if anything.
fn told(is_first: bool, room: &str, since: Option<&String>, begins: &str, gap: Option<Value>) -> Option<String> {
    let frame = match (is_first, since, gap) {
        (true, None, _) => json!({"type": "joined", "room": room, "cursor": begins}),
        (true, Some(since), None) => json!({"type": "joined", "room": room, "cursor": since, "resumed": true}),
        (true, Some(_), Some(gap)) => {
            json!({"type": "joined", "room": room, "cursor": begins, "resumed": false, "gap": gap})
        }
        (false, since, Some(_)) => json!({"type": "gap", "room": room, "from": since, "to": begins}),
        (false, _, None) => return None,
    };
    Some(frame.to_string())
}

fn place(text: &str) -> Place {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The place right before this one.
fn before(cursor: &str) -> String {
    let at = Position::parse(cursor).unwrap_or_else(|| panic!("no cursor: {cursor}"));
    Position { offset: at.offset - 1, ..at }.to_string()
}
