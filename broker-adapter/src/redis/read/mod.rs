//! The rare reads from one master: pages of history, presence, the list of rooms, a dead node's members. They go over a
//! small pool of connections, so that a large reply delays neither publishes nor deliveries. Never writes.

mod single_flight;

use crate::{
    BrokerError, Cursor, Epoch, Gap, HistoryQuery, Member, NodeId, Offset, Page, Presence, PresenceDetail, Publication,
    Room, RoomList, RoomQuery, SessionId, Who, envelope,
    redis::{
        ConnectionStatus, Fence, Keys, Part, Partition, address::client, connection::status::Server,
        errors::read_failure,
    },
};
use bytes::Bytes;
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, ConnectionInfo, FromRedisValue, Pipeline, Value};
use single_flight::SingleFlight;
use std::{error::Error, sync::Arc, time::Duration};

/// Connections in the pool: a page costs two round trips, so eight of them read some ten thousand pages a second.
const CONNECTIONS: usize = 8;
/// How long to wait for a free connection, for a new one and for a reply.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The messages of the largest page; a caller who wants more asks again.
const PAGE_MAX: usize = 1000;
/// The names in the largest page of rooms.
pub(crate) const ROOMS_MAX: usize = 10_000;

/// Reads from one master over a pool of connections.
pub(crate) struct ReadPool {
    /// The publisher's connection: the pool follows it to the server that is the master.
    status: Arc<ConnectionStatus>,
    /// With the server that it leads to.
    pool: Mutex<Option<(String, Pool)>>,
    keys: Keys,
    /// Pages of history that are being read.
    pages: Arc<SingleFlight<PageKey, Result<Option<Page>, BrokerError>>>,
}

/// What makes two reads of history the same read.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PageKey {
    room: Room,
    fence: Fence,
    query: HistoryQuery,
}

/// A room's head, and a part of its stream of the same moment.
type Range = (Cursor, Vec<Publication>);

/// A room's meta: the fence, the epoch and the last offset; `None` for what Redis does not have.
type Meta = (Option<String>, Option<Vec<u8>>, Option<u64>);
/// How many users a room has, and its presence version.
type UserCounts = (Option<u64>, Option<u64>);

impl ReadPool {
    pub(crate) fn new(status: Arc<ConnectionStatus>, keys: Keys) -> Self {
        Self { status, pool: Mutex::default(), keys, pages: SingleFlight::new() }
    }

    /// The pool of the current master. A new master gets a new pool.
    fn pool(&self) -> Result<Pool, BrokerError> {
        let Some(Server { address, .. }) = self.status.last.borrow().clone() else {
            return Err(BrokerError::Unavailable);
        };
        let server = address.addr().to_string();
        let mut current = self.pool.lock();
        if let Some((_, pool)) = current.as_ref().filter(|(known, _)| *known == server) {
            return Ok(pool.clone());
        }
        let pool = open(address).map_err(|error| BrokerError::Protocol(error.to_string()))?;
        if let Some((_, old)) = current.replace((server, pool.clone())) {
            old.close();
        }
        Ok(pool)
    }

    pub(crate) fn close(&self) {
        if let Some((_, pool)) = &*self.pool.lock() {
            pool.close();
        }
    }

    async fn ask<T: FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, BrokerError> {
        let mut conn: Connection = self.pool()?.get().await.map_err(|_| BrokerError::Unavailable)?;
        pipe.query_async(&mut conn).await.map_err(|error| read_failure(&error))
    }

    /// Reads a page. `None`: Redis does not have the room under this fence.
    pub(crate) async fn history(
        self: &Arc<Self>,
        room: &Room,
        fence: &Fence,
        query: HistoryQuery,
    ) -> Result<Option<Page>, BrokerError> {
        let (reads, key) = (Arc::clone(self), PageKey { room: room.clone(), fence: fence.clone(), query });
        self.pages.share(key.clone(), async move { reads.read_history(&key).await }).await
    }

    async fn read_history(&self, key: &PageKey) -> Result<Option<Page>, BrokerError> {
        let limit = key.query.limit.min(PAGE_MAX);
        let after = key.query.since.map(|since| since.offset);
        let Some(range) = self.range(key, after, limit).await? else { return Ok(None) };
        let (head, _) = range;
        let Some(since) = key.query.since else { return Ok(Some(page(range, None))) };
        if since.epoch == head.epoch && since.offset <= head.offset {
            let mut page = page(range, None);
            // The stream was trimmed, or Redis has lost it but not the head (expiry, eviction).
            let missed = page.from.offset.0 - since.offset.0;
            page.gap = (missed > 0).then_some(Gap { missed: Some(missed) });
            page.publications.truncate(limit);
            return Ok(Some(page));
        }
        // A cursor of another epoch, or beyond the head: how much was missed is unknown, so all that is kept follows.
        let Some(range) = self.range(key, Some(Offset(0)), limit).await? else { return Ok(None) };
        Ok(Some(page(range, Some(Gap { missed: None }))))
    }

    /// Reads what is kept after an offset, or the end of the stream. `None`: Redis does not have the room under the fence.
    async fn range(&self, key: &PageKey, after: Option<Offset>, limit: usize) -> Result<Option<Range>, BrokerError> {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HMGET").arg(self.keys.of(Part::META, &key.room)).arg(&["g", "e", "s"]);
        let stream = self.keys.of(Part::STREAM, &key.room);
        match after {
            None => pipe.cmd("XREVRANGE").arg(stream).arg("+").arg("-"),
            Some(offset) => pipe.cmd("XRANGE").arg(stream).arg(format!("({}-0", offset.0)).arg("+"),
        };
        // Redis has no COUNT 0: one entry is read and dropped.
        pipe.arg("COUNT").arg(limit.max(1));
        let (meta, entries): (Meta, Value) = self.ask(&pipe).await?;
        let Some(head) = head(&meta, &key.fence) else { return Ok(None) };
        let mut publications = publications(entries, head.epoch)?;
        if after.is_none() {
            publications.reverse();
            let surplus = publications.len().saturating_sub(limit);
            publications.drain(..surplus);
        }
        Ok(Some((head, publications)))
    }

    /// Reads who is in a room. Without a fence the head is left out.
    pub(crate) async fn presence(
        &self,
        room: &Room,
        detail: PresenceDetail,
        fence: Option<&Fence>,
    ) -> Result<Presence, BrokerError> {
        let sessions = self.keys.of(Part::SESSIONS, room);
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HLEN").arg(&sessions);
        pipe.cmd("HMGET").arg(self.keys.of(Part::USERS, room)).arg(&["U", "v"]);
        pipe.cmd("HMGET").arg(self.keys.of(Part::META, room)).arg(&["g", "e", "s"]);
        let (count, (users, version), meta, entries) = if detail == PresenceDetail::Members {
            pipe.cmd("HGETALL").arg(&sessions);
            self.ask::<(u64, UserCounts, Meta, Vec<(Vec<u8>, Vec<u8>)>)>(&pipe).await?
        } else {
            let (count, counts, meta) = self.ask::<(u64, UserCounts, Meta)>(&pipe).await?;
            (count, counts, meta, Vec::new())
        };
        Ok(Presence {
            sessions: count,
            users: users.unwrap_or(0),
            members: Member::merge(entries.into_iter().filter_map(read_entry)),
            version: version.unwrap_or(0),
            head: fence.and_then(|fence| head(&meta, fence)),
        })
    }

    /// Reads a page of the rooms with members, of these partitions.
    pub(crate) async fn rooms(&self, query: &RoomQuery, partitions: &[Partition]) -> Result<RoomList, BrokerError> {
        let limit = query.limit.min(ROOMS_MAX);
        let from = match &query.after {
            Some(after) if *after >= query.prefix => format!("({after}"),
            _ => format!("[{}", query.prefix),
        };
        // 0xFF is above every byte of a name: names are ASCII.
        let to = [b"(", query.prefix.as_bytes(), b"\xFF"].concat();
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("ZRANGEBYLEX").arg(self.keys.rooms(*partition)).arg(&from).arg(&to);
            pipe.arg("LIMIT").arg(0).arg(limit + 1);
        }
        let names: Vec<Vec<String>> = self.ask(&pipe).await?;
        let mut rooms: Vec<Room> = names.iter().flatten().filter_map(|name| Room::parse(name).ok()).collect();
        rooms.sort_unstable();
        let more = rooms.len() > limit;
        rooms.truncate(limit);
        Ok(RoomList { rooms, more })
    }

    /// Reads the rooms in which an owner has sessions, of these partitions.
    pub(crate) async fn rooms_of(&self, owner: NodeId, partitions: &[Partition]) -> Result<Vec<Room>, BrokerError> {
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("SMEMBERS").arg(self.keys.rooms_of(owner, *partition));
        }
        let names: Vec<Vec<String>> = self.ask(&pipe).await?;
        Ok(names.iter().flatten().filter_map(|name| Room::parse(name).ok()).collect())
    }

    /// Reads an owner's sessions in a room, one step after the other; the first step begins at 0. Returns where the next
    /// step begins too; `None` after the last one.
    pub(crate) async fn sessions_of(
        &self,
        owner: NodeId,
        room: &Room,
        step: u64,
    ) -> Result<(Vec<SessionId>, Option<u64>), BrokerError> {
        let mut pipe = redis::pipe();
        pipe.cmd("HSCAN").arg(self.keys.of(Part::SESSIONS, room)).arg(step).arg("COUNT").arg(512);
        type Scanned = (u64, Vec<(Vec<u8>, Vec<u8>)>);
        let ((next, entries),): (Scanned,) = self.ask(&pipe).await?;
        let owner = owner.0.to_be_bytes();
        let sessions = entries.into_iter().filter(|(_, entry)| entry.starts_with(&owner));
        let sessions = sessions.filter_map(|(session, _)| Some(SessionId(session.try_into().ok()?))).collect();
        Ok((sessions, (next != 0).then_some(next)))
    }
}

fn open(server: ConnectionInfo) -> Result<Pool, Box<dyn Error>> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(WAIT_MAX));
    let manager = Manager::new_with_config(client(server)?.get_connection_info().clone(), settings)?;
    let pool = Pool::builder(manager)
        .max_size(CONNECTIONS)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT_MAX))
        .create_timeout(Some(WAIT_MAX))
        .recycle_timeout(Some(WAIT_MAX))
        .build()?;
    Ok(pool)
}

/// The room's head, if its offsets are of this fence.
fn head((stored, epoch, offset): &Meta, fence: &Fence) -> Option<Cursor> {
    if stored.as_deref() != Some(fence.as_str()) {
        return None;
    }
    let epoch = Epoch::from_bytes(epoch.as_deref()?.try_into().ok()?)?;
    Some(Cursor::new(epoch, Offset(offset.unwrap_or(0))))
}

/// A page of all that was read, from whatever its first message is.
fn page((head, publications): Range, gap: Option<Gap>) -> Page {
    let from = publications.first().and_then(|p| p.cursor).map_or(head.offset.0, |first| first.offset.0 - 1);
    Page { publications, from: Cursor::new(head.epoch, Offset(from)), head, gap }
}

/// Reads the entries of a stream.
fn publications(entries: Value, epoch: Epoch) -> Result<Vec<Publication>, BrokerError> {
    let Value::Array(entries) = entries else { return Ok(Vec::new()) };
    let entry = |value: Value| {
        let Value::Array(parts) = value else { return None };
        let [Value::BulkString(id), Value::Array(fields)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
        let offset = std::str::from_utf8(&id).ok()?.strip_suffix("-0")?.parse().ok().filter(|offset| *offset > 0)?;
        let Value::BulkString(tail) = fields.into_iter().nth(1)? else { return None };
        envelope::decode_tail(&Bytes::from(tail), Some(Cursor::new(epoch, Offset(offset))))
    };
    let publications: Option<Vec<Publication>> = entries.into_iter().map(entry).collect();
    publications.ok_or_else(|| BrokerError::Protocol("malformed history entry".into()))
}

/// Reads an entry of a room's sessions: owner (8 bytes), announce flag (1), presence payload.
fn read_entry((session, entry): (Vec<u8>, Vec<u8>)) -> Option<(Who, Option<Bytes>)> {
    let session = SessionId(session.try_into().ok()?);
    if entry.len() < 9 {
        return None;
    }
    envelope::read_presence_payload(&Bytes::from(entry).slice(9..), Some(session))
}
