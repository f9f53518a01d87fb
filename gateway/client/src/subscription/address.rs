//! How rooms are asked for where one request names them all, and how a cursor of several rooms is read: the server counts
//! its parts in the order in which that request named the rooms.

use super::Subscription;
use crate::server::percent_encoded;
use std::fmt::Write as _;

/// The longest target that goes into a URL where there is another way: proxies take 8 KiB at least (RFC 9110 section 4.1), and
/// the rest of the head needs room too.
const TARGET_BYTES_MAX: usize = 6 << 10;

/// A poll.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A GET of this path and query.
    Get(String),
    /// A POST of this body to `/v1/poll`, where the list is long.
    Post(String),
}

impl Subscription {
    /// Path and query that ask `transport` for all rooms from where they stand.
    pub(crate) fn target(&mut self, transport: &str) -> String {
        let rooms = &self.rooms;
        let wanted = || (0..rooms.len()).filter(|index| !rooms[*index].over);
        // A comma separates the names of a path, encoded or not, so a name that has one goes into the query.
        let (queried, mut asked): (Vec<_>, Vec<_>) = wanted().partition(|index| rooms[*index].room.contains(','));
        let path: Vec<_> = asked.iter().map(|index| percent_encoded(&rooms[*index].room)).collect();
        let mut parameters: Vec<_> =
            queried.iter().map(|index| format!("room={}", percent_encoded(&rooms[*index].room))).collect();
        asked.extend(queried);
        if asked.iter().any(|index| rooms[*index].cursor.is_some()) {
            let parts: Vec<_> = asked.iter().map(|index| rooms[*index].cursor.as_deref().unwrap_or_default()).collect();
            parameters.push(format!("since={}", percent_encoded(&parts.join("~"))));
        }
        parameters.extend(asked.iter().find_map(|index| rooms[*index].history).map(|last| format!("last={last}")));
        self.asked = asked;
        let mut target = format!("/v1/rooms/{}/{transport}", path.join(","));
        let mut mark = '?';
        for parameter in parameters {
            let _ = write!(target, "{mark}{parameter}");
            mark = '&';
        }
        target
    }

    /// The next poll.
    pub(crate) fn ask(&mut self, wait_s: u64) -> Ask {
        let mut target = self.target("poll");
        let mark = if target.contains('?') { '&' } else { '?' };
        let _ = write!(target, "{mark}wait={wait_s}");
        if let Some(lease) = &self.lease {
            let _ = write!(target, "&session={}", percent_encoded(lease));
        }
        if target.len() <= TARGET_BYTES_MAX { Ask::Get(target) } else { Ask::Post(self.body(wait_s)) }
    }

    fn body(&self, wait_s: u64) -> String {
        let asked = || self.asked.iter().map(|index| &self.rooms[*index]);
        let rooms: serde_json::Map<_, _> =
            asked().map(|followed| (followed.room.clone(), followed.cursor.as_deref().into())).collect();
        let mut body = serde_json::json!({ "rooms": rooms, "wait": wait_s });
        if let Some(last) = asked().find_map(|followed| followed.history) {
            body["last"] = last.into();
        }
        if let Some(lease) = &self.lease {
            body["session"] = lease.as_str().into();
        }
        body.to_string()
    }

    /// Takes a cursor of all rooms that were asked for: how far they have been delivered.
    pub(crate) fn place(&mut self, cursor: &str) {
        let parts: Vec<_> = cursor.split('~').collect();
        if parts.len() != self.asked.len() {
            return;
        }
        for (part, index) in parts.into_iter().zip(&self.asked) {
            // Empty is a room that has not been joined yet, a dash one that keeps no history.
            if !["", "-"].contains(&part) {
                self.rooms[*index].cursor = Some(part.to_owned());
            }
        }
    }
}
