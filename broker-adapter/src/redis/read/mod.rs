//! The rare reads: history pages, presence, the list of rooms, a dead node's members. Over a small pool, so that a
//! large answer holds up neither publishes nor deliveries. Never writes.

pub(crate) mod single_flight;

use crate::redis::{
    commands::Fence,
    connection::keep::{Link, client},
    keys::{Names, Part, Partition},
    read::single_flight::Flights,
};
use crate::{
    BrokerError, Cursor, Epoch, Gap, HistoryQuery, Member, NodeId, Offset, Page, Presence, PresenceDetail, Publication,
    Room, RoomList, RoomQuery, SessionId, User, Who, envelope,
};
use bytes::Bytes;
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use redis::{AsyncConnectionConfig, ConnectionInfo, FromRedisValue, Pipeline, RedisError, Value};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Connections: a page costs two round trips, so eight of them read some ten thousand pages a second.
const CONNECTIONS: usize = 8;
/// How long to wait for a free connection, for a new one and for an answer.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The largest page; a caller who wants more asks again.
const PAGE_MAX: usize = 1000;
/// The largest page of rooms.
pub(crate) const ROOMS_MAX: usize = 10_000;

/// See the module's head.
pub(crate) struct Reads {
    /// The command connection: the pool follows it to where the master is.
    link: Arc<Link>,
    /// And the server that it leads to.
    pool: Mutex<Option<(String, Pool)>>,
    names: Names,
    /// Pages of history that are being read.
    pages: Arc<Flights<PageKey, Result<Option<Page>, BrokerError>>>,
}

/// Which page of which room: under which fence, after which place, of what length.
type PageKey = (Room, Fence, Option<Cursor>, usize);

/// A room's meta: the fence, the epoch and the last offset; `None` where there is none.
type Meta = (Option<String>, Option<Vec<u8>>, Option<u64>);

impl Reads {
    pub(crate) fn new(link: Arc<Link>, names: Names) -> Self {
        Self { link, pool: Mutex::default(), names, pages: Flights::new() }
    }

    fn pool(&self) -> Result<Pool, BrokerError> {
        let server = self.link.server().ok_or(BrokerError::Unavailable)?;
        let name = server.addr().to_string();
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = pool.as_ref().filter(|(led, _)| *led == name) {
            return Ok(known.clone());
        }
        let fresh = open(server)?;
        if let Some((_, old)) = pool.replace((name, fresh.clone())) {
            old.close();
        }
        Ok(fresh)
    }

    pub(crate) fn close(&self) {
        if let Some((_, pool)) = &*self.pool.lock().unwrap_or_else(PoisonError::into_inner) {
            pool.close();
        }
    }

    async fn ask<T: FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, BrokerError> {
        let mut conn: Connection = self.pool()?.get().await.map_err(|_| BrokerError::Unavailable)?;
        pipe.query_async(&mut conn).await.map_err(|error| failure(&error))
    }

    /// `None`: the room's offsets were given out by another memory than this fence's, or there is no room.
    pub(crate) async fn history(
        self: &Arc<Self>,
        room: &Room,
        fence: &Fence,
        query: HistoryQuery,
    ) -> Result<Option<Page>, BrokerError> {
        let (reads, room, fence) = (Arc::clone(self), room.clone(), fence.clone());
        let key = (room.clone(), fence.clone(), query.since, query.limit);
        self.pages.share(key, async move { reads.read_history(&room, &fence, query).await }).await
    }

    async fn read_history(&self, room: &Room, fence: &Fence, query: HistoryQuery) -> Result<Option<Page>, BrokerError> {
        let limit = query.limit.min(PAGE_MAX);
        let range = query.since.map_or(Range::Last, |since| Range::After(since.offset));
        let Some((head, publications)) = self.range(room, fence, range, limit).await? else { return Ok(None) };
        let Some(since) = query.since else { return Ok(Some(page(head, publications, None))) };
        if since.epoch == head.epoch && since.offset <= head.offset {
            return Ok(Some(page_since(since, head, publications, limit)));
        }
        let Some((head, publications)) = self.range(room, fence, Range::Oldest, limit).await? else { return Ok(None) };
        Ok(Some(page(head, publications, Some(Gap { missed: None }))))
    }

    /// The head and a part of the stream, of one moment.
    async fn range(
        &self,
        room: &Room,
        fence: &Fence,
        range: Range,
        limit: usize,
    ) -> Result<Option<(Cursor, Vec<Publication>)>, BrokerError> {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HMGET").arg(self.names.of(Part::Meta, room)).arg(&["g", "e", "s"]);
        let stream = self.names.of(Part::Stream, room);
        match range {
            Range::Last => pipe.cmd("XREVRANGE").arg(stream).arg("+").arg("-"),
            Range::Oldest => pipe.cmd("XRANGE").arg(stream).arg("-").arg("+"),
            Range::After(offset) => pipe.cmd("XRANGE").arg(stream).arg(format!("({}-0", offset.0)).arg("+"),
        };
        pipe.arg("COUNT").arg(limit.max(1));
        let (meta, entries): (Meta, Value) = self.ask(&pipe).await?;
        let Some(head) = head(&meta, fence) else { return Ok(None) };
        let mut publications = entries_of(entries, head.epoch)?;
        if range == Range::Last {
            publications.reverse();
            let surplus = publications.len().saturating_sub(limit);
            publications.drain(..surplus);
        }
        Ok(Some((head, publications)))
    }

    pub(crate) async fn presence(
        &self,
        room: &Room,
        detail: PresenceDetail,
        fence: Option<&Fence>,
    ) -> Result<Presence, BrokerError> {
        let sessions = self.names.of(Part::Sessions, room);
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HLEN").arg(&sessions);
        pipe.cmd("HMGET").arg(self.names.of(Part::Users, room)).arg(&["U", "v"]);
        pipe.cmd("HMGET").arg(self.names.of(Part::Meta, room)).arg(&["g", "e", "s"]);
        type Counts = (Option<u64>, Option<u64>);
        let (count, (users, version), meta, entries) = if detail == PresenceDetail::Members {
            pipe.cmd("HGETALL").arg(&sessions);
            self.ask::<(u64, Counts, Meta, Vec<(Vec<u8>, Vec<u8>)>)>(&pipe).await?
        } else {
            let (count, counts, meta) = self.ask::<(u64, Counts, Meta)>(&pipe).await?;
            (count, counts, meta, Vec::new())
        };
        Ok(Presence {
            sessions: count,
            users: users.unwrap_or(0),
            members: members(entries),
            version: version.unwrap_or(0),
            head: fence.and_then(|fence| head(&meta, fence)),
        })
    }

    pub(crate) async fn rooms(&self, query: &RoomQuery, partitions: &[Partition]) -> Result<RoomList, BrokerError> {
        let limit = query.limit.min(ROOMS_MAX);
        let from = match &query.after {
            Some(after) if *after >= query.prefix => format!("({after}"),
            _ => format!("[{}", query.prefix),
        };
        // Above every name that begins so: names are ASCII.
        let to = [b"(", query.prefix.as_bytes(), b"\xFF"].concat();
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("ZRANGEBYLEX").arg(self.names.rooms(*partition)).arg(&from).arg(&to);
            pipe.arg("LIMIT").arg(0).arg(limit + 1);
        }
        let partitions: Vec<Vec<String>> = self.ask(&pipe).await?;
        let mut rooms: Vec<Room> = partitions.iter().flatten().filter_map(|name| Room::parse(name).ok()).collect();
        rooms.sort_unstable();
        let more = rooms.len() > limit;
        rooms.truncate(limit);
        Ok(RoomList { rooms, more })
    }

    /// The rooms in which an owner has sessions, of these partitions.
    pub(crate) async fn rooms_of(&self, owner: NodeId, partitions: &[Partition]) -> Result<Vec<Room>, BrokerError> {
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("SMEMBERS").arg(self.names.rooms_of(owner, *partition));
        }
        let partitions: Vec<Vec<String>> = self.ask(&pipe).await?;
        Ok(partitions.iter().flatten().filter_map(|name| Room::parse(name).ok()).collect())
    }

    /// An owner's sessions in a room, in steps: begins with 0 and ends when the next step is 0.
    pub(crate) async fn sessions_of(
        &self,
        owner: NodeId,
        room: &Room,
        step: u64,
    ) -> Result<(u64, Vec<SessionId>), BrokerError> {
        let mut pipe = redis::pipe();
        pipe.cmd("HSCAN").arg(self.names.of(Part::Sessions, room)).arg(step).arg("COUNT").arg(512);
        type Scanned = (u64, Vec<(Vec<u8>, Vec<u8>)>);
        let ((next, entries),): (Scanned,) = self.ask(&pipe).await?;
        let owner = owner.0.to_be_bytes();
        let sessions = entries.into_iter().filter(|(_, entry)| entry.starts_with(&owner));
        Ok((next, sessions.filter_map(|(session, _)| Some(SessionId(session.try_into().ok()?))).collect()))
    }
}

fn open(server: ConnectionInfo) -> Result<Pool, BrokerError> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(WAIT_MAX));
    let failed = |why: String| BrokerError::Protocol(why);
    let info = client(server).map_err(|e| failed(e.to_string()))?.get_connection_info().clone();
    let manager = Manager::new_with_config(info, settings).map_err(|e| failed(e.to_string()))?;
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT_MAX))
        .create_timeout(Some(WAIT_MAX))
        .recycle_timeout(Some(WAIT_MAX))
        .build()
        .map_err(|e| failed(e.to_string()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Last,
    Oldest,
    After(Offset),
}

fn failure(error: &RedisError) -> BrokerError {
    if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
        return BrokerError::Unavailable;
    }
    match error.code() {
        Some("LOADING" | "MASTERDOWN" | "READONLY" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN") => {
            BrokerError::Unavailable
        }
        Some(code) => BrokerError::Protocol(code.to_owned()),
        None => BrokerError::Protocol(format!("{:?}", error.kind())),
    }
}

fn head((stored, epoch, offset): &Meta, fence: &Fence) -> Option<Cursor> {
    if stored.as_deref() != Some(fence.as_str()) {
        return None;
    }
    let epoch = Epoch::from_bytes(epoch.as_deref()?.try_into().ok()?)?;
    Some(Cursor::new(epoch, Offset(offset.unwrap_or(0))))
}

/// Everything that was read belongs together; what came before it is none of the caller's business, or a gap already.
fn page(head: Cursor, publications: Vec<Publication>, gap: Option<Gap>) -> Page {
    let from = publications.first().and_then(|p| p.cursor).map_or(head.offset.0, |first| first.offset.0 - 1);
    Page { publications, from: Cursor::new(head.epoch, Offset(from)), head, gap }
}

/// What follows `since` has to begin with the next offset: the stream may have been trimmed, or be gone although the
/// head is known (expiry, eviction).
fn page_since(since: Cursor, head: Cursor, mut publications: Vec<Publication>, limit: usize) -> Page {
    let first = publications.first().and_then(|p| p.cursor).map_or(head.offset.0 + 1, |first| first.offset.0);
    let missed = first - 1 - since.offset.0;
    publications.truncate(limit);
    let from = Cursor::new(head.epoch, Offset(first - 1));
    Page { publications, from, head, gap: (missed > 0).then_some(Gap { missed: Some(missed) }) }
}

fn entries_of(entries: Value, epoch: Epoch) -> Result<Vec<Publication>, BrokerError> {
    let Value::Array(entries) = entries else { return Ok(Vec::new()) };
    let entry = |value: Value| {
        let Value::Array(parts) = value else { return None };
        let [Value::BulkString(id), Value::Array(fields)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
        let offset = std::str::from_utf8(&id).ok()?.strip_suffix("-0")?.parse().ok().filter(|offset| *offset > 0)?;
        let Value::BulkString(tail) = fields.into_iter().nth(1)? else { return None };
        envelope::decode_tail(&Bytes::from(tail), Some(Cursor::new(epoch, Offset(offset)))).ok()
    };
    let read: Option<Vec<Publication>> = entries.into_iter().map(entry).collect();
    read.ok_or_else(|| BrokerError::Protocol("a history entry that is none".into()))
}

fn members(entries: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<Member> {
    let mut named: HashMap<User, Member> = HashMap::new();
    let mut members = Vec::new();
    for (session, entry) in entries {
        let Some((who, info)) = attendee(&session, &entry) else { continue };
        let member = Member { who: who.clone(), sessions: 1, info };
        match who {
            Who::Session(_) => members.push(member),
            Who::User(user) => match named.get_mut(&user) {
                None => drop(named.insert(user, member)),
                Some(known) => {
                    known.sessions += 1;
                    known.info = known.info.take().or(member.info);
                }
            },
        }
    }
    members.extend(named.into_values());
    members
}

/// An entry is owner (8 bytes), announce flag (1), presence payload.
fn attendee(session: &[u8], entry: &[u8]) -> Option<(Who, Option<Bytes>)> {
    let (len, rest) = entry.get(9..)?.split_first_chunk::<2>()?;
    let (who, info) = match u16::from_be_bytes(*len) {
        u16::MAX => (Who::Session(SessionId(session.try_into().ok()?)), rest),
        len => {
            let (name, info) = rest.split_at_checked(usize::from(len))?;
            (Who::User(User::new(std::str::from_utf8(name).ok()?)), info)
        }
    };
    Some((who, (!info.is_empty()).then(|| Bytes::copy_from_slice(info))))
}
