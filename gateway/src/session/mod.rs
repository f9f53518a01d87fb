//! The state machine of one client: its identity, its rooms, its rates. Sans-I/O: a command and the time go in
//! ([`Session::handle`]), an [`Action`] comes out, and the shard executes it. No clock, socket, broker or task in here.

mod frames;
pub(crate) mod keepalive;
mod outbox;
mod rate;

pub(crate) use frames::{Frames, HeldBytes, Hold};
pub(crate) use outbox::{Outbox, OutboxLimits, SLICES_MAX};
pub(crate) use rate::TokenBucket;

use crate::{
    policy::{
        limits::Limits,
        rights::{self, Act, Identity},
    },
    protocol::{
        close::CloseReason,
        command::{Command, JoinOptions, PublishRequest, Request},
        error::{ErrorCode, Refusal},
    },
};
use fanfare_broker::{Cursor, IdempotencyKey, Room, SessionId, User};
use rate::ErrorWindow;
use smallvec::SmallVec;
use std::borrow::Cow;

/// How far a session has come into a room. It is `Joining` until the stored messages that it is to get are queued, then
/// `Member`. A member that joins again is `Rejoining` and gets the room's messages meanwhile as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Joining,
    Member,
    Rejoining,
}

impl Stage {
    /// Whether the session gets the room's messages.
    pub(crate) fn is_member(self) -> bool {
        self != Self::Joining
    }
}

/// A room that a session is in or joins. `room` is the shard's key for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionRoom {
    pub(crate) room: u32,
    pub(crate) stage: Stage,
    /// The number of the join. A completion that carries another number belongs to a replaced join and is ignored.
    pub(crate) join: u32,
}

/// The limit of joins, leaves, presence and history requests per second and session. Bursts may be twice as large, so a
/// client that reconnects can rejoin all of its rooms immediately.
const REQUESTS_PER_SECOND: u32 = 500;

/// One client: its identity, its rooms and its rate limits.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    identity: Option<Box<Identity>>,
    memberships: SmallVec<[SessionRoom; 1]>,
    /// The number of the latest join.
    joins: u32,
    publishes: TokenBucket,
    /// Joins, leaves, presence and history: each costs the broker a request.
    requests: TokenBucket,
    errors: ErrorWindow,
}

/// What the shard has to do for a command.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    Join(Room, JoinOptions),
    Leave(Room),
    /// With the request's room and key, checked.
    Publish(Room, Option<IdempotencyKey>, PublishRequest<'a>),
    Presence(Room),
    History {
        room: Room,
        since: Option<Cursor>,
        limit: usize,
    },
    Pong,
    Refuse {
        room: Option<Cow<'a, str>>,
        refusal: Refusal,
        close: Option<CloseReason>,
    },
}

/// Why a request is refused, and the room that it named.
type RefusedRequest<'a> = (Option<Cow<'a, str>>, Refusal);

impl Session {
    pub(crate) fn new(id: SessionId, identity: Option<Box<Identity>>, limits: &Limits, now_ms: u32) -> Self {
        let publishes = TokenBucket::full(limits.publishes_per_second, now_ms);
        let requests = TokenBucket::full(REQUESTS_PER_SECOND, now_ms);
        let (memberships, errors) = (SmallVec::new(), ErrorWindow::default());
        Self { id, identity, memberships, joins: 0, publishes, requests, errors }
    }

    /// The user; `None` for an anonymous session.
    pub(crate) fn user(&self) -> Option<&User> {
        self.identity.as_ref().and_then(|i| i.user.as_ref())
    }

    /// Checks a command against rights and limits.
    pub(crate) fn handle<'a>(&mut self, command: Command<'a>, limits: &Limits, now_ms: u32) -> Action<'a> {
        if !matches!(command.request, Request::Publish(_) | Request::Ping | Request::Auth)
            && let Err(ms) = self.requests.take(REQUESTS_PER_SECOND, now_ms)
        {
            let refusal = Refusal::new(ErrorCode::RateLimited, "too many requests").retry_after(ms);
            return self.refuse(command.request.into_room(), refusal, now_ms);
        }
        match self.decide(command.request, limits, now_ms) {
            Ok(action) => action,
            Err((room, refusal)) => self.refuse(room, refusal, now_ms),
        }
    }

    /// Refuses a request, and closes the session when its client has caused too many errors. Errors of the gateway or
    /// the backplane do not count.
    pub(crate) fn refuse<'a>(&mut self, room: Option<Cow<'a, str>>, refusal: Refusal, now_ms: u32) -> Action<'a> {
        let close = refusal.code.is_clients() && self.errors.count(now_ms);
        let close = close.then_some(CloseReason::TooManyErrors);
        Action::Refuse { room, refusal, close }
    }

    fn decide<'a>(
        &mut self,
        request: Request<'a>,
        limits: &Limits,
        now_ms: u32,
    ) -> Result<Action<'a>, RefusedRequest<'a>> {
        Ok(match request {
            Request::Join { room, options } => {
                let name = self.permit(&room, Act::Join)?;
                if options.wants_presence {
                    self.permit(&room, Act::Presence)?;
                }
                Action::Join(name, options)
            }
            Request::Leave { room } => Action::Leave(Room::parse(&room).map_err(|why| (Some(room), why.into()))?),
            Request::Publish(request) => {
                let name = self.permit(&request.room, Act::Publish)?;
                if let Err(ms) = self.publishes.take(limits.publishes_per_second, now_ms) {
                    let refusal = Refusal::new(ErrorCode::RateLimited, "too many publishes").retry_after(ms);
                    return Err((Some(request.room), refusal));
                }
                let key = match request.key.as_deref().map(IdempotencyKey::parse) {
                    Some(None) => return Err((Some(request.room), Refusal::bad_request("key has 1 to 64 bytes"))),
                    key => key.flatten(),
                };
                Action::Publish(name, key, request)
            }
            Request::Presence { room } => Action::Presence(self.permit(&room, Act::Presence)?),
            Request::History { room, since, limit } => {
                Action::History { room: self.permit(&room, Act::History)?, since, limit }
            }
            Request::Auth => {
                return Err((None, Refusal::new(ErrorCode::Unauthorized, "this version accepts no tokens")));
            }
            Request::Ping => Action::Pong,
        })
    }

    /// Parses the room name and checks the right. Every command that names a room passes here, except `leave`, which
    /// needs no right. Rooms in the URL of a stream or a poll are checked in `transport::request` instead.
    fn permit<'a>(&self, room: &Cow<'a, str>, act: Act) -> Result<Room, RefusedRequest<'a>> {
        let permitted = Room::parse(room).map_err(Refusal::from).and_then(|name| {
            rights::permit(self.identity.as_deref(), act, &name)?;
            Ok(name)
        });
        permitted.map_err(|refusal| (Some(room.clone()), refusal))
    }

    // --- memberships: the shard decides, the session keeps the list ---

    /// Whether the session may join one more room.
    pub(crate) fn may_enter(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.memberships.len() < limits.rooms_per_session {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::RoomLimit, "this session is in as many rooms as it may be"))
    }

    /// Begins a join and returns its number. If the session is in the room already, its membership goes back to
    /// `Joining`.
    pub(crate) fn begin_join(&mut self, room: u32) -> u32 {
        self.joins = self.joins.wrapping_add(1);
        match self.memberships.iter_mut().find(|m| m.room == room) {
            Some(existing) => {
                existing.join = self.joins;
                if existing.stage == Stage::Member {
                    existing.stage = Stage::Rejoining;
                }
            }
            None => self.memberships.push(SessionRoom { room, stage: Stage::Joining, join: self.joins }),
        }
        self.joins
    }

    /// Completes join number `join`; `false` if the session has left the room or joined it again meanwhile.
    pub(crate) fn complete_join(&mut self, room: u32, join: u32) -> bool {
        let joining = self.memberships.iter_mut().find(|m| m.room == room && m.join == join);
        joining.map(|m| m.stage = Stage::Member).is_some()
    }

    /// Whether join number `join` is in progress: not complete, not left, not replaced by a later one.
    pub(crate) fn is_joining(&self, room: u32, join: u32) -> bool {
        self.memberships.iter().any(|m| m.room == room && m.join == join && m.stage != Stage::Member)
    }

    pub(crate) fn membership(&self, room: u32) -> Option<SessionRoom> {
        self.memberships.iter().copied().find(|m| m.room == room)
    }

    pub(crate) fn leave(&mut self, room: u32) -> Option<SessionRoom> {
        let index = self.memberships.iter().position(|m| m.room == room)?;
        Some(self.memberships.swap_remove(index))
    }

    pub(crate) fn take_memberships(&mut self) -> SmallVec<[SessionRoom; 1]> {
        std::mem::take(&mut self.memberships)
    }
}

#[cfg(test)]
mod model_tests;
