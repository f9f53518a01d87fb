//! The names in a path's braces, such as `{room}`: percent-decoded and checked.

use crate::protocol::error::Refusal;
use axum::extract::{Path, rejection::PathRejection};
use fanfare_broker::Room;

/// What axum extracts from a path.
pub(super) type Named<T> = Result<Path<T>, PathRejection>;

/// The room in a path.
pub(super) fn room(path: Named<String>) -> Result<Room, Refusal> {
    Ok(Room::parse(&named(path)?)?)
}

/// The names in a path.
pub(super) fn named<T>(path: Named<T>) -> Result<T, Refusal> {
    path.map(|Path(names)| names).map_err(|_| Refusal::bad_request("the path is not percent-encoded UTF-8"))
}
