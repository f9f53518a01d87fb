//! The rare reads from one master: pages of history, presence, the list of rooms. They go over a small pool of
//! connections, so that a large reply delays neither publishes nor deliveries. And the broker's upkeep: what is read and
//! run to remove members whose time is over.

mod single_flight;

use crate::{
    BrokerError, Cursor, Epoch, Gap, HistoryQuery, IsPayload, Member, NodeId, Offset, Page, Presence, PresenceDetail,
    Publication, Purpose, Room, RoomList, RoomQuery, SessionId, Who, envelope,
    redis::{
        ConnectionStatus, Fence, Keys, Membership, NodeContext, Over, Part, Partition, address::client,
        connection::status::Server,
    },
};
use bytes::Bytes;
use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime, TimeoutType};
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, FromRedisValue, Pipeline, RedisResult, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use single_flight::SingleFlight;
use std::{
    error::Error,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Connections for each [`Purpose`], made when they are needed. A page costs one round trip, so eight of them read some
/// twenty thousand pages a second.
const CONNECTIONS: [usize; 4] = [4, 8, 4, 2];
/// How long to wait for a free connection, for a new one and for a reply.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The messages of the largest page; a caller who wants more asks again.
const PAGE_MAX: usize = 1000;
/// How often a read that was torn by a change is made.
const ATTEMPTS: usize = 3;
/// The names in the largest page of rooms.
pub(crate) const ROOMS_MAX: usize = 10_000;

/// Reads from one master over a pool of connections.
pub(crate) struct ReadPool {
    /// The publisher's connection: the pool follows it to the server that is the master.
    status: Arc<ConnectionStatus>,
    /// The server that they lead to, and the connections for each [`Purpose`].
    pools: Mutex<Option<(String, [Pool; CONNECTIONS.len()])>>,
    context: Arc<NodeContext>,
    /// Pages of history that are being read.
    pages: Arc<SingleFlight<PageKey, Option<Page>>>,
    /// Member lists that are being read: one serves all that join at that moment.
    listings: Arc<SingleFlight<ListingKey, Arc<Presence>>>,
}

/// What makes two reads of presence the same read.
type ListingKey = (Room, PresenceDetail, Option<Fence>);

/// What makes two reads of history the same read.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PageKey {
    room: Room,
    fence: Fence,
    query: HistoryQuery,
}

/// Entries of a stream, ascending: each one's offset, and the message unless it cannot be read.
type Entries = Vec<(Offset, Option<Publication>)>;
/// A room's head, and a part of its stream.
type Range = (Cursor, Entries);

/// A field of a hash as it is stored, since one that cannot be read must not fail the whole read; `None`: Redis does not
/// have it.
type HashValue = Option<Vec<u8>>;
/// A room's meta: the fence, the epoch and the last offset.
type Meta = (HashValue, HashValue, HashValue);
/// How many users a room has, and its presence version.
type UserCounts = (HashValue, HashValue);
/// A part of an owner's list of members in one partition.
pub(crate) struct MemberPage {
    pub(crate) members: Vec<Membership>,
    /// What is listed, but cannot be read.
    pub(crate) unreadable: Vec<Vec<u8>>,
    /// The list may have more.
    pub(crate) is_full: bool,
}

impl MemberPage {
    fn new(list: Vec<Vec<u8>>, most: usize) -> Self {
        let mut page =
            Self { members: Vec::with_capacity(list.len()), unreadable: Vec::new(), is_full: list.len() == most };
        for listed in list {
            match read_member(&listed) {
                Some(member) => page.members.push(member),
                None => page.unreadable.push(listed),
            }
        }
        page
    }
}

impl ReadPool {
    pub(crate) fn new(status: Arc<ConnectionStatus>, context: Arc<NodeContext>) -> Self {
        let pages = SingleFlight::new(context.tasks.clone());
        let listings = SingleFlight::new(context.tasks.clone());
        Self { status, pools: Mutex::default(), context, pages, listings }
    }

    /// The connections to the current master. A new master gets new ones.
    fn pool(&self, purpose: Purpose) -> Result<Pool, BrokerError> {
        let Some(Server { address, .. }) = self.status.last.borrow().clone() else {
            return Err(self.status.away());
        };
        let server = address.addr().to_string();
        let mut current = self.pools.lock();
        if let Some((_, pools)) = current.as_ref().filter(|(known, _)| *known == server) {
            return Ok(pools[purpose as usize].clone());
        }
        let open = |connections| open(address.clone(), connections);
        let pools = CONNECTIONS.map(open).into_iter().collect::<Result<Vec<_>, _>>();
        let pools = pools.map_err(|error| BrokerError::Protocol(error.to_string()))?;
        let pools: [Pool; CONNECTIONS.len()] = pools.try_into().map_err(|_| BrokerError::Unavailable)?;
        let pool = pools[purpose as usize].clone();
        if let Some((_, old)) = current.replace((server, pools)) {
            old.iter().for_each(Pool::close);
        }
        Ok(pool)
    }

    pub(crate) fn close(&self) {
        if let Some((_, pools)) = &*self.pools.lock() {
            pools.iter().for_each(Pool::close);
        }
    }

    fn keys(&self) -> &Keys {
        &self.context.builder.keys
    }

    async fn connection(&self, purpose: Purpose) -> Result<Connection, BrokerError> {
        self.pool(purpose)?.get().await.map_err(|why| match why {
            // All connections are busy with other reads.
            PoolError::Timeout(TimeoutType::Wait) => BrokerError::Overloaded,
            // A new connection was refused, while those of before go on.
            PoolError::Backend(why) => self.context.refusals.of_error(&why),
            _ => BrokerError::Unavailable,
        })
    }

    async fn ask<T: FromRedisValue>(&self, purpose: Purpose, pipe: &Pipeline) -> Result<T, BrokerError> {
        let mut conn = self.connection(purpose).await?;
        pipe.query_async(&mut conn).await.map_err(|error| self.context.refusals.of_error(&error))
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
        let Some(since) = key.query.since else {
            let Some((head, entries)) = self.range(key, None, limit).await? else { return Ok(None) };
            return Ok(Some(newest(head, entries, limit)));
        };
        let Some((head, entries)) = self.range(key, Some(since.offset), limit).await? else { return Ok(None) };
        if since.epoch == head.epoch && since.offset <= head.offset {
            let mut page = page(head, entries);
            // The stream was trimmed, or Redis has lost it but not the head (expiry, eviction), or cannot be read there.
            let missed = page.from.offset.0 - since.offset.0;
            page.gap = (missed > 0).then_some(Gap { missed: Some(missed) });
            page.publications.truncate(limit);
            return Ok(Some(page));
        }
        // A cursor of another epoch, or beyond the head: how much was missed is unknown, so all that is kept follows.
        let Some((head, entries)) = self.range(key, Some(Offset(0)), limit).await? else { return Ok(None) };
        Ok(Some(Page { gap: Some(Gap { missed: None }), ..page(head, entries) }))
    }

    /// Reads what is kept after an offset, or the end of the stream. `None`: Redis does not have the room under the fence.
    ///
    /// Three commands of one pipeline, and not of a transaction: a Redis whose memory is full refuses MULTI. If a new
    /// epoch begins between them, which shows by the two heads, they are sent again.
    async fn range(&self, key: &PageKey, after: Option<Offset>, limit: usize) -> Result<Option<Range>, BrokerError> {
        let (meta, stream) = (self.keys().of(Part::META, &key.room), self.keys().of(Part::STREAM, &key.room));
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET").arg(&meta).arg(&["g", "e", "s"]);
        match after {
            None => pipe.cmd("XREVRANGE").arg(stream).arg("+").arg("-"),
            Some(offset) => pipe.cmd("XRANGE").arg(stream).arg(format!("({}-0", offset.0)).arg("+"),
        };
        // Redis has no COUNT 0: one entry is read and dropped.
        pipe.arg("COUNT").arg(limit.max(1));
        pipe.cmd("HMGET").arg(&meta).arg(&["g", "e", "s"]);
        for _ in 0..ATTEMPTS {
            let (before, entries, behind): (Meta, Value, Meta) = self.ask(key.query.purpose, &pipe).await?;
            let (before, behind) = (head(&before, &key.fence), head(&behind, &key.fence));
            match (before, behind) {
                (Some(before), Some(behind)) if before.epoch == behind.epoch => {
                    let mut entries = entries_of(entries, behind, self.context.config.is_payload);
                    let unreadable = entries.iter().filter(|(_, publication)| publication.is_none()).count();
                    self.context.unreadable.fetch_add(unreadable as u64, Ordering::Relaxed);
                    if after.is_none() {
                        entries.reverse();
                    }
                    // The head of the moment of the read: what was published after it comes by subscription.
                    let last = entries.last().map_or(0, |(offset, _)| offset.0);
                    return Ok(Some((Cursor::new(before.epoch, Offset(last.max(before.offset.0))), entries)));
                }
                (None, None) => return Ok(None),
                _ => {}
            }
        }
        Err(BrokerError::Unavailable)
    }

    /// Reads who is in a room. Without a fence the head is left out.
    pub(crate) async fn presence(
        self: &Arc<Self>,
        room: &Room,
        detail: PresenceDetail,
        fence: Option<Fence>,
    ) -> Result<Arc<Presence>, BrokerError> {
        let (reads, key) = (Arc::clone(self), (room.clone(), detail, fence));
        self.listings.share(key.clone(), async move { reads.read_presence(&key).await.map(Arc::new) }).await
    }

    async fn read_presence(&self, (room, detail, fence): &ListingKey) -> Result<Presence, BrokerError> {
        let (sessions, users) = (self.keys().of(Part::SESSIONS, room), self.keys().of(Part::USERS, room));
        // Not a transaction, which a Redis with a full memory refuses. Redis runs the commands of one pipeline one after
        // the other, unless they come in two pieces: then a change in between shows by the version, and they are sent
        // again. If there are ever more changes the first version counts, and members get an event that they have seen.
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET").arg(&users).arg(&["U", "v"]);
        pipe.cmd("HLEN").arg(&sessions);
        pipe.cmd("HMGET").arg(self.keys().of(Part::META, room)).arg(&["g", "e", "s"]);
        pipe.cmd(if *detail == PresenceDetail::Members { "HGETALL" } else { "HLEN" }).arg(&sessions);
        pipe.cmd("HGET").arg(&users).arg("v");
        type Read = (UserCounts, u64, Meta, Value, HashValue);
        let mut read: Read = self.ask(Purpose::Question, &pipe).await?;
        for _ in 1..ATTEMPTS {
            if read.0.1 == read.4 {
                break;
            }
            read = self.ask(Purpose::Question, &pipe).await?;
        }
        let ((users, version), count, meta, entries, _) = read;
        let entries: Vec<(Vec<u8>, Vec<u8>)> = match detail {
            PresenceDetail::Members => {
                redis::from_redis_value(entries).map_err(|why| self.context.refusals.of_error(&why.into()))?
            }
            _ => Vec::new(),
        };
        Ok(Presence {
            sessions: count,
            users: number(&users).unwrap_or(0),
            members: Member::merge(entries.into_iter().filter_map(read_entry)),
            version: number(&version).unwrap_or(0),
            head: fence.as_ref().and_then(|fence| head(&meta, fence)),
        })
    }

    /// Reads a page of the rooms with members, of these partitions.
    pub(crate) async fn rooms(&self, query: &RoomQuery, partitions: &[Partition]) -> Result<RoomList, BrokerError> {
        let limit = query.limit.min(ROOMS_MAX);
        let from = match &query.after {
            Some(after) if *after >= query.prefix => format!("({after}"),
            _ => format!("[{}", query.prefix),
        };
        // 0x7F is above every byte of a name. Above it no text is UTF-8, and what Redis repeats in a refusal has to be.
        let to = [b"(", query.prefix.as_bytes(), b"\x7F"].concat();
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("ZRANGEBYLEX").arg(self.keys().rooms(*partition)).arg(&from).arg(&to);
            pipe.arg("LIMIT").arg(0).arg(limit + 1);
        }
        let names: Vec<Vec<String>> = self.ask(Purpose::Question, &pipe).await?;
        let mut rooms: Vec<Room> = names.iter().flatten().filter_map(|name| Room::parse(name).ok()).collect();
        rooms.sort_unstable();
        let more = rooms.len() > limit;
        rooms.truncate(limit);
        Ok(RoomList { rooms, more })
    }

    // --- upkeep ---

    /// Reads members of an owner that are over, in each of these partitions at most `most`. A list that Redis refuses to
    /// read does not keep the others from being read.
    pub(crate) async fn members_of(
        &self,
        owner: NodeId,
        over: Over,
        partitions: &[Partition],
        most: usize,
    ) -> Result<Vec<Result<MemberPage, BrokerError>>, BrokerError> {
        let until = match over {
            Over::All => "+inf".to_owned(),
            Over::Ended => {
                let ((seconds, micros),): ((u64, u64),) = self.ask(Purpose::Upkeep, redis::pipe().cmd("TIME")).await?;
                (seconds * 1000 + micros / 1000).to_string()
            }
        };
        let mut pipe = Pipeline::with_capacity(partitions.len());
        for partition in partitions {
            pipe.cmd("ZRANGEBYSCORE").arg(self.keys().members_of(owner, *partition)).arg("-inf").arg(&until);
            pipe.arg("LIMIT").arg(0).arg(most);
        }
        let lists: Vec<RedisResult<Vec<Vec<u8>>>> = self.ask(Purpose::Upkeep, pipe.ignore_errors()).await?;
        let refusal = |error| self.context.refusals.of_error(&error);
        Ok(lists.into_iter().map(|list| list.map_err(refusal).map(|list| MemberPage::new(list, most))).collect())
    }

    /// A connection for [`ReadPool::run`]. To get one costs a round trip.
    pub(crate) async fn for_upkeep(&self) -> Result<MultiplexedConnection, BrokerError> {
        self.connection(Purpose::Upkeep).await.map(|connection| MultiplexedConnection::clone(&connection))
    }

    /// Runs a script for the broker itself: the only writes that go over these connections, so that they take turns with
    /// publishes in Redis and not in this node's queue.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        mut conn: MultiplexedConnection,
        call: &Cmd,
    ) -> Result<T, BrokerError> {
        let mut reply = call.query_async::<T>(&mut conn).await;
        if reply.as_ref().is_err_and(|error| error.kind() == ServerErrorKind::NoScript.into()) {
            let scripts = &self.context.builder.scripts;
            scripts.load(&mut conn).await.map_err(|error| self.context.refusals.of_error(&error))?;
            reply = call.query_async(&mut conn).await;
        }
        reply.map_err(|error| self.context.refusals.of_error(&error))
    }
}

fn open(server: ConnectionInfo, connections: usize) -> Result<Pool, Box<dyn Error>> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(WAIT_MAX));
    let manager = Manager::new_with_config(client(server)?.get_connection_info().clone(), settings)?;
    let pool = Pool::builder(manager)
        .max_size(connections)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT_MAX))
        .create_timeout(Some(WAIT_MAX))
        .recycle_timeout(Some(WAIT_MAX))
        .build()?;
    Ok(pool)
}

/// The room's head, if its offsets are of this fence. `None` too if it cannot be read: the head command then begins a new
/// epoch.
fn head((stored, epoch, offset): &Meta, fence: &Fence) -> Option<Cursor> {
    if stored.as_deref() != Some(fence.as_str().as_bytes()) {
        return None;
    }
    let epoch = Epoch::from_bytes(epoch.as_deref()?.try_into().ok()?)?;
    Some(Cursor::new(epoch, Offset(number(offset)?)))
}

/// A field's number; `None`: it cannot be read, or is below 0.
fn number(field: &HashValue) -> Option<u64> {
    std::str::from_utf8(field.as_deref()?).ok()?.parse().ok()
}

/// The page of what was read after an offset. Entries that cannot be read are missing like those that were trimmed: the
/// page begins after them, or ends before them.
fn page(head: Cursor, entries: Entries) -> Page {
    let mut from = entries.first().map_or(head.offset.0, |(first, _)| first.0 - 1);
    let mut publications: Vec<Publication> = Vec::with_capacity(entries.len());
    for (offset, publication) in entries {
        match publication {
            Some(publication) if from + publications.len() as u64 + 1 == offset.0 => publications.push(publication),
            None if publications.is_empty() => from = offset.0,
            _ => break,
        }
    }
    Page { publications, from: Cursor::new(head.epoch, Offset(from)), head, gap: None }
}

/// The page of the newest messages, without a hole between them.
fn newest(head: Cursor, mut entries: Entries, limit: usize) -> Page {
    let is_broken = |pair: &[(Offset, Option<Publication>)]| pair[0].1.is_none() || pair[0].0.0 + 1 != pair[1].0.0;
    let broken = match entries.last() {
        Some((_, None)) => entries.len(),
        _ => entries.windows(2).rposition(is_broken).map_or(0, |at| at + 1),
    };
    let surplus = entries.len().saturating_sub(limit);
    entries.drain(..broken.max(surplus));
    page(head, entries)
}

/// Reads the entries of a stream up to the head; `None` for the content of one that cannot be read. An entry whose id no
/// script has given out is left out.
fn entries_of(entries: Value, head: Cursor, is_payload: IsPayload) -> Entries {
    let Value::Array(entries) = entries else { return Vec::new() };
    let entry = |value: Value| {
        let Value::Array(parts) = value else { return None };
        let [Value::BulkString(id), fields] = <[Value; 2]>::try_from(parts).ok()? else { return None };
        let offset = Offset(std::str::from_utf8(&id).ok()?.strip_suffix("-0")?.parse().ok()?);
        let tail = match fields {
            Value::Array(fields) => fields.into_iter().nth(1),
            _ => None,
        };
        let publication = match tail {
            Some(Value::BulkString(tail)) => {
                let read = envelope::decode_tail(&Bytes::from(tail), Some(Cursor::new(head.epoch, offset)));
                read.filter(|publication| is_payload(&publication.payload))
            }
            _ => None,
        };
        (1..=head.offset.0).contains(&offset.0).then_some((offset, publication))
    };
    entries.into_iter().filter_map(entry).collect()
}

/// Reads a member in an owner's list: the session's bytes, then the room's name.
fn read_member(member: &[u8]) -> Option<Membership> {
    let (session, room) = member.split_first_chunk::<{ SessionId::BYTES }>()?;
    let room = Room::parse(std::str::from_utf8(room).ok()?).ok()?;
    Some(Membership { room, session: SessionId(*session) })
}

/// Reads an entry of a room's sessions: owner (8 bytes), announce flag (1), presence payload.
fn read_entry((session, entry): (Vec<u8>, Vec<u8>)) -> Option<(Who, Option<Bytes>)> {
    let session = SessionId(session.try_into().ok()?);
    if entry.len() < 9 {
        return None;
    }
    envelope::read_presence_payload(&Bytes::from(entry).slice(9..), Some(session))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;
    use bytes::BytesMut;

    fn entries(list: &[(u64, bool)], head: u64) -> (Cursor, Entries) {
        let entry = |(offset, is_readable): &(u64, bool)| {
            let mut tail = BytesMut::new();
            envelope::put_tail(&mut tail, MessageId { node: NodeId(1), number: *offset }, 1, None, b"\"data\":1");
            // One that is too short, or one whose payload is empty.
            let bad = if offset % 2 == 0 { b"bad".to_vec() } else { tail[..36].to_vec() };
            let tail = if *is_readable { tail.to_vec() } else { bad };
            let id = Value::BulkString(format!("{offset}-0").into_bytes());
            Value::Array(vec![id, Value::Array(vec![Value::BulkString(b"d".to_vec()), Value::BulkString(tail)])])
        };
        let head = Cursor::new(Epoch::random(), Offset(head));
        (head, entries_of(Value::Array(list.iter().map(entry).collect()), head, |payload| !payload.is_empty()))
    }

    fn offsets(page: &Page) -> (u64, Vec<u64>) {
        let offsets = page.publications.iter().filter_map(|message| message.cursor).map(|cursor| cursor.offset.0);
        (page.from.offset.0, offsets.collect())
    }

    #[test]
    fn a_page_ends_before_an_unreadable_entry_and_the_next_begins_after_it() {
        for (list, from, read) in [
            (&[(3, true), (4, true), (5, false), (6, true)][..], 2, &[3, 4][..]),
            (&[(5, false), (6, true), (7, true)], 5, &[6, 7]),
            (&[(5, false), (6, false)], 6, &[]),
            (&[(3, true), (5, true)], 2, &[3]),
            (&[(7, true), (8, true)], 6, &[7]),
            (&[], 7, &[]),
        ] {
            let (head, entries) = entries(list, 7);
            assert_eq!(offsets(&page(head, entries)), (from, read.to_vec()), "{list:?}");
        }
    }

    #[test]
    fn the_newest_messages_are_those_after_the_last_unreadable_one() {
        for (list, limit, from, read) in [
            (&[(3, true), (4, false), (5, true), (6, true)][..], 10, 4, &[5, 6][..]),
            (&[(3, true), (4, true), (5, true), (6, true)], 2, 4, &[5, 6]),
            (&[(3, true), (4, true), (5, true), (6, false)], 10, 6, &[]),
        ] {
            let (head, entries) = entries(list, 6);
            assert_eq!(offsets(&newest(head, entries, limit)), (from, read.to_vec()), "{list:?}");
        }
    }
}
