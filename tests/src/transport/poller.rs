//! A client that polls again and again, over one connection as long as the server keeps it open, and returns the frames
//! that a WebSocket would have received. Responses to polls contain no `joined` and no `gap` frames, so the poller makes
//! them from the cursors and the `gap` field. Called by `connection`. A refused poll ends it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::ended::Ended;
use super::http_connection::HttpConnection;
use super::kind::Transport;
use super::poll::PollResponse;
use super::request::RoomRequest;
use crate::history::Cursor;
use crate::http::{Refused, Reply};
use crate::wait::pause;

/// What a poller does now.
#[derive(Debug)]
enum State {
    /// Waits for the time of the next poll.
    Idle(Instant),
    /// Waits for the head of a response.
    Sent,
    /// Reads the body of a response.
    Reading(Reply, Vec<u8>),
}

/// A client that polls until a poll is refused or fails.
#[derive(Debug)]
pub struct Poller {
    address: SocketAddr,
    transport: Transport,
    request: RoomRequest,
    /// The cursor of the last response; at first the one of the request.
    since: Option<String>,
    session: Option<String>,
    connection: HttpConnection,
    /// Whether a poll has been answered on this connection. The server may close such a connection just when the next
    /// poll is sent, so that poll is sent again on a new one.
    has_response: bool,
    state: State,
    /// Frames that have not been returned yet.
    pending: VecDeque<String>,
    is_first: bool,
}

/// The fields of a message that the poller reads.
#[derive(Deserialize)]
struct MessageHead {
    room: String,
    cursor: String,
}

impl Poller {
    /// Connects and sends the first poll.
    pub(super) async fn open(
        address: SocketAddr,
        transport: Transport,
        request: &RoomRequest,
    ) -> Result<Self, Refused> {
        let connection = HttpConnection::connect(address).await.map_err(Refused::network)?;
        let mut poller = Self {
            address,
            transport,
            since: request.since.clone(),
            request: request.clone(),
            session: None,
            connection,
            has_response: false,
            state: State::Sent,
            pending: VecDeque::new(),
            is_first: true,
        };
        poller.send().await.map_err(Refused::network)?;
        Ok(poller)
    }

    /// The secret `session` of the first response.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The cursor after all frames that were returned; `None` in the middle of a response.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        if self.pending.is_empty() { self.since.as_deref() } else { None }
    }

    /// The next frame, or `None` for a response without any. May be cancelled and called again.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Ended> {
        loop {
            if let Some(text) = self.pending.pop_front() {
                return Ok(Some(text));
            }
            match &mut self.state {
                State::Idle(until) => {
                    pause(until.saturating_duration_since(Instant::now())).await;
                    self.send().await.map_err(Ended::network)?;
                }
                State::Sent => match self.connection.head().await {
                    Ok(head) => self.state = State::Reading(head, Vec::new()),
                    Err(_) if self.has_response => self.reconnect_and_send().await.map_err(Ended::network)?,
                    Err(error) => return Err(Ended::network(error)),
                },
                State::Reading(head, body) => match self.connection.piece().await.map_err(Ended::network)? {
                    Some(piece) => body.extend_from_slice(&piece),
                    None => {
                        head.text = String::from_utf8_lossy(body).into_owned();
                        if head.status != 200 {
                            return Err(Ended::refused(head));
                        }
                        let response = PollResponse::parse(&head.text);
                        self.has_response = true;
                        self.take(&response);
                        if self.pending.is_empty() {
                            return Ok(None);
                        }
                    }
                },
            }
        }
    }

    async fn send(&mut self) -> std::io::Result<()> {
        if !self.connection.is_kept() {
            return self.reconnect_and_send().await;
        }
        self.state = State::Sent;
        match self.connection.get(&self.path(), &[]).await {
            Err(_) if self.has_response => self.reconnect_and_send().await,
            done => done,
        }
    }

    async fn reconnect_and_send(&mut self) -> std::io::Result<()> {
        self.has_response = false;
        self.connection = HttpConnection::connect(self.address).await?;
        self.state = State::Sent;
        self.connection.get(&self.path(), &[]).await
    }

    fn path(&self) -> String {
        let mut request = self.request.clone();
        if self.transport == Transport::ShortPoll {
            request.query.push_str(if request.query.is_empty() { "wait=0" } else { "&wait=0" });
        }
        // The server ignores `last` beside a cursor, so it has an effect on the first poll only.
        request.path(self.transport, self.since.as_deref())
    }

    /// Turns a response into frames and decides when to poll again.
    fn take(&mut self, response: &PollResponse) {
        let cursor = response.cursor().to_owned();
        let messages: Vec<(MessageHead, &str)> = response.messages().map(|text| (head(text), text)).collect();
        let parts: Vec<&str> = cursor.split('~').collect();
        assert_eq!(parts.len(), self.request.rooms.len(), "the cursor has a part for each room: {cursor}");
        let since: Vec<String> = self.since.iter().flat_map(|since| since.split('~')).map(str::to_owned).collect();
        for (index, room) in self.request.rooms.iter().enumerate() {
            let first = messages.iter().find(|(head, _)| head.room == *room);
            // The response begins right before the room's first message, or at the new cursor if it has none.
            let start = first.map_or_else(|| parts[index].to_owned(), |(head, _)| before(&head.cursor));
            let gap = response.gap.as_ref().and_then(|gap| gap.get(room)).map(|gap| json!({"missed": gap.missed}));
            let since = since.get(index).filter(|part| !part.is_empty());
            let frame = match (self.is_first, since, gap) {
                (true, None, _) => json!({"type": "joined", "room": room, "cursor": start}),
                (true, Some(since), None) => {
                    json!({"type": "joined", "room": room, "cursor": since, "resumed": true})
                }
                (true, Some(_), Some(gap)) => {
                    json!({"type": "joined", "room": room, "cursor": start, "resumed": false, "gap": gap})
                }
                (false, since, Some(_)) => json!({"type": "gap", "room": room, "from": since, "to": start}),
                (false, _, None) => continue,
            };
            self.pending.push_back(frame.to_string());
        }
        self.pending.extend(messages.iter().map(|(_, text)| (*text).to_owned()));
        self.is_first = false;
        self.since = Some(cursor);
        self.session.get_or_insert_with(|| response.session.clone());
        let pause = match (response.more, self.transport) {
            (false, Transport::ShortPoll) => Duration::from_millis(response.next_ms).min(self.request.pace_max),
            _ => Duration::ZERO,
        };
        self.state = State::Idle(Instant::now() + pause);
    }

    /// Ends the connection with a RST.
    pub(super) fn reset(self) {
        self.connection.reset();
    }
}

fn head(text: &str) -> MessageHead {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The cursor right before this one.
fn before(cursor: &str) -> String {
    let at = Cursor::parse(cursor).unwrap_or_else(|| panic!("malformed cursor: {cursor}"));
    Cursor { offset: at.offset - 1, ..at }.to_string()
}
