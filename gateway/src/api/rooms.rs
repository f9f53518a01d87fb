//! Reading rooms: who is there, what was published, which rooms have members; and removing users. Any node answers for
//! the whole cluster.

use super::path::{Named, named, room};
use crate::{
    http::{json, respond},
    node::Node,
    policy::rights::{self, Act},
    protocol::{
        command::{HISTORY_LIMIT, HISTORY_LIMIT_MAX},
        control::ControlMessage,
        error::Refusal,
        event::{Event, MemberView},
        native,
    },
};
use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{Response, StatusCode},
};
use fanfare_broker::{HistoryQuery, NodeTarget, PresenceDetail, Purpose, Room, RoomQuery};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, sync::Arc};

/// Rooms in one response: at most, and by default.
const ROOMS_MAX: usize = 1000;
const ROOMS: usize = 100;

#[derive(Serialize)]
struct Occupancy<'a> {
    room: &'a str,
    sessions: u64,
    users: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// `GET /v1/rooms/{room}`.
pub(super) async fn occupancy(State(node): State<Arc<Node>>, path: Named<String>) -> Result<Response<Body>, Refusal> {
    let room = room(path)?;
    rights::permit(None, Act::Read, &room)?;
    let presence = node.broker.presence(&room, PresenceDetail::Counts).await?;
    let numbered = node.classes.of(room.as_str()).history.is_some();
    Ok(respond(&Occupancy {
        room: room.as_str(),
        sessions: presence.sessions,
        users: presence.users,
        cursor: presence.head.filter(|_| numbered).map(|cursor| cursor.to_string()),
    }))
}

#[derive(Deserialize)]
pub(super) struct ListParams {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct List<'a> {
    rooms: Vec<&'a str>,
    /// The `after` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

/// `GET /v1/rooms?prefix=&after=&limit=`.
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Response<Body>, Refusal> {
    rights::permit_everywhere(None, Act::Read)?;
    let Query(ListParams { prefix, after, limit }) = params.map_err(|_| wrong_query())?;
    let limit = limit.unwrap_or(ROOMS).clamp(1, ROOMS_MAX);
    let list = node.broker.rooms(RoomQuery { prefix, after, limit }).await?;
    let rooms: Vec<&str> = list.rooms.iter().map(Room::as_str).collect();
    let next = rooms.last().copied().filter(|_| list.more);
    Ok(respond(&List { rooms, next }))
}

#[derive(Deserialize)]
pub(super) struct HistoryParams {
    since: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/rooms/{room}/history?since=&limit=`.
pub(super) async fn history(
    State(node): State<Arc<Node>>,
    path: Named<String>,
    params: Result<Query<HistoryParams>, QueryRejection>,
) -> Result<Response<Body>, Refusal> {
    let room = room(path)?;
    rights::permit(None, Act::History, &room)?;
    let Query(HistoryParams { since, limit }) = params.map_err(|_| wrong_query())?;
    let since = native::cursor(since.map(Cow::Owned))?;
    let limit = limit.unwrap_or(HISTORY_LIMIT).min(HISTORY_LIMIT_MAX);
    let page = node.history(&room, HistoryQuery { since, limit, purpose: Purpose::Question }).await?;
    Ok(json(StatusCode::OK, native::history(None, &room, &page)))
}

/// `GET /v1/rooms/{room}/presence`.
pub(super) async fn presence(State(node): State<Arc<Node>>, path: Named<String>) -> Result<Response<Body>, Refusal> {
    let room = room(path)?;
    rights::permit(None, Act::Presence, &room)?;
    let presence = node.presence(&room).await?;
    let members = presence.members.iter().map(MemberView::from).collect();
    Ok(respond(&Event::Presence { id: None, room: room.as_str(), count: presence.users, members, more: false }))
}

/// `DELETE /v1/rooms/{room}/members/{user}`.
pub(super) async fn kick(State(node): State<Arc<Node>>, path: Named<(String, String)>) -> Result<StatusCode, Refusal> {
    let (room, user) = named(path)?;
    let room = Room::parse(&room)?;
    rights::permit(None, Act::Administer, &room)?;
    let session = user.parse();
    let done = send_to_all(&node, &ControlMessage::Kick { room: room.clone(), user }).await?;
    // The node that has renewed a polling session's lease may be gone, so the lease is ended from here.
    if let Ok(session) = session {
        node.leases.give_back(&room, session).await?;
    }
    Ok(done)
}

/// `DELETE /v1/users/{user}`.
pub(super) async fn disconnect(State(node): State<Arc<Node>>, path: Named<String>) -> Result<StatusCode, Refusal> {
    let user = named(path)?;
    rights::permit_everywhere(None, Act::Administer)?;
    send_to_all(&node, &ControlMessage::Disconnect { user }).await
}

/// Sends a control message to all nodes; the response does not wait for them.
async fn send_to_all(node: &Node, message: &ControlMessage) -> Result<StatusCode, Refusal> {
    node.broker.send_control(NodeTarget::All, message.encode()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn wrong_query() -> Refusal {
    Refusal::bad_request("limit is not a whole number, or the URL has a name twice")
}
