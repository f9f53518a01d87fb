//! Removing a user from a room, or from the whole cluster. All nodes get a control message; the response does not wait for
//! them.

use super::path::{Named, named};
use crate::{
    node::Node,
    policy::rights::{self, Act},
    protocol::{control::ControlMessage, error::Refusal},
};
use axum::{extract::State, http::StatusCode};
use fanfare_broker::{NodeTarget, Room};
use std::sync::Arc;

/// `DELETE /v1/rooms/{room}/members/{user}`.
pub(super) async fn member(
    State(node): State<Arc<Node>>,
    path: Named<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (room, user) = named(path)?;
    let room = Room::parse(&room)?;
    rights::permit(None, Act::Administer, &room)?;
    send(&node, &ControlMessage::Kick { room, user }).await
}

/// `DELETE /v1/users/{user}`.
pub(super) async fn user(State(node): State<Arc<Node>>, path: Named<String>) -> Result<StatusCode, Refusal> {
    let user = named(path)?;
    rights::permit_everywhere(None, Act::Administer)?;
    send(&node, &ControlMessage::Disconnect { user }).await
}

async fn send(node: &Node, message: &ControlMessage) -> Result<StatusCode, Refusal> {
    node.broker.send_control(NodeTarget::All, message.encode()).await?;
    Ok(StatusCode::NO_CONTENT)
}
