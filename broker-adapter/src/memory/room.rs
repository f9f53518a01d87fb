//! `RoomState`: one room of the embedded broker, with its recent messages, followers and members. Has no clock; callers
//! pass the time. A room with one member and no messages has three small allocations; everything else is allocated on
//! use.

use crate::{
    Cursor, Epoch, Gap, HistoryQuery, IdempotencyKey, Member, Offset, Page, Presence, PresenceDetail, PresenceEvent,
    PresenceKind, PresenceUpdate, Publication, Retention, SessionId, SubscriberId, User, Who,
};
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// How long a room without members is kept after its last message, at least: until then the number of messages that a
/// cursor has missed is known.
const META_TTL: Duration = Duration::from_secs(3600);

/// One room.
pub(super) struct RoomState {
    epoch: Epoch,
    offset: u64,
    log: VecDeque<KeptMessage>,
    /// Until when the room has to be kept; set by each message.
    remembered_until: Option<Instant>,
    followers: Vec<SubscriberId>,
    sessions: HashMap<SessionId, PresentSession>,
    /// How many sessions each named user has.
    users: HashMap<User, u32>,
    presence_version: u64,
    keys: Option<Box<UsedKeys>>,
}

/// A message in history, until it expires.
struct KeptMessage {
    publication: Publication,
    until: Instant,
}

/// A session in the room.
struct PresentSession {
    user: Option<User>,
    info: Option<Box<Bytes>>,
    /// When its lease ends, and whether its leave is announced then; `None`: it stays until it leaves.
    lease: Option<(Instant, bool)>,
}

/// Idempotency keys with the cursors of their first publishes, until they expire.
#[derive(Default)]
struct UsedKeys {
    by_key: HashMap<IdempotencyKey, Option<Cursor>>,
    expiries: VecDeque<(Instant, IdempotencyKey)>,
}

impl RoomState {
    pub(super) fn new(epoch_bits: u64) -> Self {
        Self {
            epoch: Epoch::from_bits(epoch_bits),
            offset: 0,
            log: VecDeque::new(),
            remembered_until: None,
            followers: Vec::new(),
            sessions: HashMap::new(),
            users: HashMap::new(),
            presence_version: 0,
            keys: None,
        }
    }

    pub(super) fn head(&self) -> Cursor {
        Cursor::new(self.epoch, Offset(self.offset))
    }

    pub(super) fn has_had_messages(&self) -> bool {
        self.offset > 0
    }

    pub(super) fn has_sessions(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Whether the state can be dropped without any client noticing.
    pub(super) fn can_be_forgotten(&self, now: Instant) -> bool {
        self.followers.is_empty()
            && self.sessions.is_empty()
            && self.keys.is_none()
            && self.remembered_until.is_none_or(|until| now >= until)
    }

    // --- messages ---

    pub(super) fn next_cursor(&mut self) -> Cursor {
        self.offset += 1;
        self.head()
    }

    pub(super) fn keep(&mut self, publication: &Publication, retention: Retention, now: Instant) {
        self.log.push_back(KeptMessage { publication: publication.clone(), until: now + retention.ttl });
        let surplus = self.log.len().saturating_sub(retention.messages as usize);
        self.log.drain(..surplus);
        self.remembered_until = Some(now + retention.ttl.max(META_TTL));
        self.expire(now);
    }

    /// Drops expired messages and keys.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.log.front().is_some_and(|kept| kept.until <= now) {
            self.log.pop_front();
        }
        if self.log.is_empty() {
            self.log.shrink_to_fit();
        }
        if let Some(keys) = &mut self.keys {
            keys.expire(now);
            if keys.by_key.is_empty() {
                self.keys = None;
            }
        }
    }

    pub(super) fn page(&self, query: HistoryQuery) -> Page {
        let head = self.head();
        let before_oldest = self.offset - self.log.len() as u64;
        let (from, gap) = match query.since {
            None => (self.offset - (query.limit.min(self.log.len()) as u64), None),
            Some(since) if since.epoch != self.epoch || since.offset.0 > self.offset => {
                (before_oldest, Some(Gap { missed: None }))
            }
            Some(since) if since.offset.0 < before_oldest => {
                (before_oldest, Some(Gap { missed: Some(before_oldest - since.offset.0) }))
            }
            Some(since) => (since.offset.0, None),
        };
        let publications = self.log.iter().skip((from - before_oldest) as usize).take(query.limit);
        Page {
            publications: publications.map(|kept| kept.publication.clone()).collect(),
            from: Cursor::new(self.epoch, Offset(from)),
            head,
            gap,
        }
    }

    // --- idempotency ---

    pub(super) fn published_before(&mut self, key: &IdempotencyKey, now: Instant) -> Option<Option<Cursor>> {
        let keys = self.keys.as_mut()?;
        keys.expire(now);
        keys.by_key.get(key).copied()
    }

    pub(super) fn remember(&mut self, key: IdempotencyKey, cursor: Option<Cursor>, now: Instant) {
        let keys = self.keys.get_or_insert_default();
        keys.expiries.push_back((now + IdempotencyKey::TTL, key.clone()));
        keys.by_key.insert(key, cursor);
    }

    // --- followers ---

    pub(super) fn follow(&mut self, who: SubscriberId) {
        if !self.followers.contains(&who) {
            self.followers.reserve_exact(1);
            self.followers.push(who);
        }
    }

    pub(super) fn unfollow(&mut self, who: SubscriberId) {
        self.followers.retain(|f| *f != who);
    }

    pub(super) fn followers(&self) -> impl Iterator<Item = SubscriberId> {
        self.followers.iter().copied()
    }

    // --- presence ---

    /// Returns the event to announce: only of a user's first and last session.
    pub(super) fn update_presence(&mut self, update: PresenceUpdate) -> Option<PresenceEvent> {
        match update {
            PresenceUpdate::Enter { session, user, info, announce } => {
                let who = user.clone().map_or(Who::Session(session), Who::User);
                let present = PresentSession { user: user.clone(), info: info.clone().map(Box::new), lease: None };
                if self.sessions.insert(session, present).is_some() {
                    return None;
                }
                if let Some(user) = user {
                    let count = self.users.entry(user).or_default();
                    *count += 1;
                    if *count > 1 {
                        return None;
                    }
                }
                self.change(PresenceKind::Joined, who, info, announce)
            }
            PresenceUpdate::Lease { session, announce, ttl } => {
                let until = Instant::now() + ttl;
                if let Some(present) = self.sessions.get_mut(&session) {
                    let lease = present.lease.get_or_insert((until, announce));
                    lease.0 = lease.0.max(until);
                    return None;
                }
                let present = PresentSession { user: None, info: None, lease: Some((until, announce)) };
                self.sessions.insert(session, present);
                self.change(PresenceKind::Joined, Who::Session(session), None, announce)
            }
            PresenceUpdate::EndLease { session, .. } => self.end_lease(session),
            PresenceUpdate::Leave { session, announce } => {
                let PresentSession { user, info, .. } = self.sessions.remove(&session)?;
                let who = user.clone().map_or(Who::Session(session), Who::User);
                if let Some(user) = user {
                    let count = self.users.get_mut(&user)?;
                    *count -= 1;
                    if *count > 0 {
                        return None;
                    }
                    self.users.remove(&user);
                }
                self.change(PresenceKind::Left, who, info.map(|i| *i), announce)
            }
        }
    }

    /// Until when a session is present by lease, if it is.
    pub(super) fn leased_until(&self, session: SessionId) -> Option<Instant> {
        self.sessions.get(&session)?.lease.map(|(until, _)| until)
    }

    /// Ends a session's lease, and returns the event to announce. A session without one stays.
    pub(super) fn end_lease(&mut self, session: SessionId) -> Option<PresenceEvent> {
        let (_, announce) = self.sessions.get(&session)?.lease?;
        self.update_presence(PresenceUpdate::Leave { session, announce })
    }

    fn change(&mut self, kind: PresenceKind, who: Who, info: Option<Bytes>, announce: bool) -> Option<PresenceEvent> {
        self.presence_version += 1;
        announce.then_some(PresenceEvent { kind, who, info, version: self.presence_version })
    }

    pub(super) fn presence(&self, detail: PresenceDetail) -> Presence {
        let anonymous = self.sessions.values().filter(|a| a.user.is_none()).count();
        let members = match detail {
            PresenceDetail::Counts => Vec::new(),
            PresenceDetail::Members => self.members(),
        };
        Presence {
            sessions: self.sessions.len() as u64,
            users: (anonymous + self.users.len()) as u64,
            members,
            version: self.presence_version,
            head: (self.has_had_messages() || self.has_sessions()).then(|| self.head()),
        }
    }

    fn members(&self) -> Vec<Member> {
        let who = |session, user: &Option<User>| user.clone().map_or(Who::Session(session), Who::User);
        let sessions = self.sessions.iter();
        Member::merge(sessions.map(|(session, a)| (who(*session, &a.user), a.info.as_deref().cloned())))
    }
}

impl UsedKeys {
    fn expire(&mut self, now: Instant) {
        while self.expiries.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.expiries.pop_front() {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MessageId, NodeId};

    const KEEP: Retention = Retention { messages: 3, ttl: Duration::from_secs(60) };

    fn publish(room: &mut RoomState, now: Instant) -> Cursor {
        let cursor = room.next_cursor();
        let id = MessageId { node: NodeId(1), number: cursor.offset.0 };
        let publication = Publication { cursor: Some(cursor), id, author: None, ts_ms: 0, payload: Bytes::new() };
        room.keep(&publication, KEEP, now);
        cursor
    }

    fn offsets(page: &Page) -> Vec<u64> {
        page.publications.iter().map(|p| p.cursor.unwrap().offset.0).collect()
    }

    #[test]
    fn trimmed_messages_are_counted_as_missed() {
        let (mut room, now) = (RoomState::new(1), Instant::now());
        for _ in 0..5 {
            publish(&mut room, now);
        }
        let since = |offset| HistoryQuery {
            since: Some(Cursor::new(room.epoch, Offset(offset))),
            limit: 10,
            purpose: crate::Purpose::Question,
        };
        let page = room.page(since(0));
        assert_eq!((offsets(&page), page.gap), (vec![3, 4, 5], Some(Gap { missed: Some(2) })));
        let page = room.page(since(2));
        assert_eq!((offsets(&page), page.gap), (vec![3, 4, 5], None));
        let page = room.page(since(6));
        assert_eq!(page.gap, Some(Gap { missed: None }));
    }

    #[test]
    fn messages_expire_first_and_then_the_room() {
        let (mut room, now) = (RoomState::new(1), Instant::now());
        publish(&mut room, now);
        room.expire(now + Duration::from_secs(61));
        assert!(
            room.page(HistoryQuery { since: None, limit: 10, purpose: crate::Purpose::Question })
                .publications
                .is_empty()
        );
        assert!(!room.can_be_forgotten(now + Duration::from_secs(61)), "its cursors are still valid");
        assert!(room.can_be_forgotten(now + META_TTL));
    }
}
