//! A broker for the model test. Its rooms are in memory, and nothing that it has to say arrives by itself: the test
//! decides when a request looks at the room, when its reply comes or fails, and which live messages arrive or are lost.

use crate::{node::inbox::Inbox, protocol::native};
use bytes::Bytes;
use fanfare_broker::{
    Broker, BrokerError, BrokerFuture, Cursor, Delivery, Epoch, Gap, HistoryQuery, Member, MessageId, NodeId,
    NodeTarget, Offset, Page, Presence, PresenceDetail, PresenceEvent, PresenceKind, PresenceUpdate, Publication,
    Publish, Purpose, Reply, Retention, Room, RoomEvent, RoomList, RoomQuery, SessionId, Status, Subscriber as _,
    SubscriberId, Who,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::oneshot;

/// Messages in a page that begins after a cursor. Brokers cut pages by their bytes, so a page may be shorter than asked.
const PAGE_MAX: usize = 3;

/// Bytes in a message, by its offset. Two neighbours in eleven are more than a shard delivers in one part when it reads them
/// from history, and each message with more than a number is more than the smallest socket takes in one write.
const SIZES: [usize; 11] = [0, 0, 0, 2_500, 0, 0, 2_500, 0, 35_000, 35_000, 0];

/// What becomes of a live message on its way to the shard.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// It arrives, and all that waited before it.
    Arrives,
    Waits,
    /// It is in history only.
    IsLost,
}

/// Which of the requests without a reply.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pick {
    Oldest,
    Newest,
    Any(usize),
}

pub(super) struct ScriptedBroker {
    inbox: Arc<Inbox>,
    script: Mutex<Script>,
}

#[derive(Default)]
struct Script {
    rooms: Rooms,
    requests: Vec<Box<dyn Held>>,
    /// Live events on their way to the shard.
    live: VecDeque<Delivery>,
}

#[derive(Default)]
struct Rooms(BTreeMap<Room, RoomLog>);

/// One room: all that was ever published, epoch by epoch, and who is present.
struct RoomLog {
    epochs: Vec<EpochLog>,
    is_followed: bool,
    /// The shard has the reply to its subscription.
    is_confirmed: bool,
    /// The shard cannot know of its own of what happened last: a head will tell it.
    needs_head: bool,
    /// Nor of who came and left last: a version of presence will tell it.
    needs_presence: bool,
    present: HashSet<SessionId>,
    presence_version: u64,
}

struct EpochLog {
    epoch: Epoch,
    /// The message with offset 1 comes first.
    messages: Vec<Publication>,
    /// History has forgotten the messages up to this offset.
    forgotten: u64,
}

/// A request whose reply the test holds back.
trait Held: Send {
    /// Takes the reply's content from the rooms as they are now. Later looks change nothing.
    fn look(&mut self, rooms: &Rooms);
    fn reply(self: Box<Self>, rooms: &Rooms, failure: Option<BrokerError>);
    fn is_given_up(&self) -> bool;
}

struct Request<T> {
    read: Box<dyn Fn(&Rooms) -> T + Send>,
    content: Option<T>,
    /// Whether it may fail for good. After enough failures of a catch-up, members are told of a gap although nothing is lost.
    may_be_refused: bool,
    reply: oneshot::Sender<Result<T, BrokerError>>,
}

impl<T: Send> Held for Request<T> {
    fn look(&mut self, rooms: &Rooms) {
        self.content.get_or_insert_with(|| (self.read)(rooms));
    }

    fn reply(mut self: Box<Self>, rooms: &Rooms, failure: Option<BrokerError>) {
        self.look(rooms);
        let Self { content, may_be_refused, reply, .. } = *self;
        let failure = failure.map(|why| if may_be_refused { why } else { BrokerError::Unavailable });
        drop(reply.send(failure.map_or_else(|| Ok(content.unwrap()), Err)));
    }

    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }
}

impl Rooms {
    fn log(&self, room: &Room) -> &RoomLog {
        &self.0[room]
    }

    fn log_mut(&mut self, room: &Room) -> &mut RoomLog {
        self.0.get_mut(room).unwrap()
    }
}

impl RoomLog {
    fn new() -> Self {
        let mut log = Self {
            epochs: Vec::new(),
            is_followed: false,
            is_confirmed: false,
            needs_head: false,
            needs_presence: false,
            present: HashSet::new(),
            presence_version: 0,
        };
        log.begin_epoch();
        log
    }

    fn begin_epoch(&mut self) {
        let name = format!("epoch-{:02}", self.epochs.len());
        let epoch = Epoch::from_bytes(name.as_bytes().try_into().unwrap()).unwrap();
        self.epochs.push(EpochLog { epoch, messages: Vec::new(), forgotten: 0 });
    }

    fn present_epoch(&self) -> &EpochLog {
        self.epochs.last().unwrap()
    }

    fn epoch(&self, epoch: Epoch) -> Option<&EpochLog> {
        self.epochs.iter().find(|log| log.epoch == epoch)
    }

    fn publish(&mut self) -> Publication {
        let number = self.epochs.len() as u64 * 10_000;
        let log = self.epochs.last_mut().unwrap();
        let number = number + log.messages.len() as u64 + 1;
        let size = SIZES[(log.messages.len() + 1) % SIZES.len()];
        // White space is read faster than anything else, and nothing between here and the client looks at it.
        let mut payload = native::payload(&number.to_string(), None, native::Sender::Backend);
        payload.resize(payload.len() + size, b' ');
        let publication = Publication {
            cursor: Some(Cursor::new(log.epoch, Offset(log.messages.len() as u64 + 1))),
            id: MessageId { node: NodeId(2), number },
            author: None,
            ts_ms: 0,
            payload: payload.into(),
        };
        log.messages.push(publication.clone());
        publication
    }
}

impl EpochLog {
    fn head(&self) -> u64 {
        self.messages.len() as u64
    }

    fn at(&self, offset: u64) -> Cursor {
        Cursor::new(self.epoch, Offset(offset))
    }

    /// As the other brokers do it.
    fn page(&self, query: HistoryQuery) -> Page {
        let HistoryQuery { since, limit, .. } = query;
        let lost = |missed| (self.forgotten, Some(Gap { missed }));
        let (from, gap) = match since {
            None => (self.head().saturating_sub(limit as u64).max(self.forgotten), None),
            Some(since) if since.epoch != self.epoch || since.offset.0 > self.head() => lost(None),
            Some(since) if since.offset.0 < self.forgotten => lost(Some(self.forgotten - since.offset.0)),
            Some(since) => (since.offset.0, None),
        };
        let limit = since.map_or(limit, |_| limit.min(PAGE_MAX));
        let publications = self.messages.iter().skip(from as usize).take(limit).cloned().collect();
        Page { publications, from: self.at(from), head: self.at(self.head()), gap }
    }
}

/// What happens in the test, at the backplane.
impl ScriptedBroker {
    pub(super) fn new(inbox: Arc<Inbox>, rooms: &[Room]) -> Self {
        let rooms = Rooms(rooms.iter().map(|room| (room.clone(), RoomLog::new())).collect());
        Self { inbox, script: Mutex::new(Script { rooms, ..Script::default() }) }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Another node publishes.
    pub(super) fn publish_elsewhere(&self, room: &Room, fate: Fate) {
        let mut script = self.script();
        let log = script.rooms.log_mut(room);
        let message = RoomEvent::Message(log.publish());
        if matches!(fate, Fate::IsLost) {
            log.needs_head = true;
        } else if log.is_followed {
            script.live.push_back(Delivery { room: room.clone(), event: message });
        }
        drop(script);
        if matches!(fate, Fate::Arrives) {
            self.deliver(usize::MAX);
        }
    }

    /// The next live events arrive.
    pub(super) fn deliver(&self, count: usize) {
        let mut script = self.script();
        let count = count.min(script.live.len());
        script.live.drain(..count).for_each(|delivery| self.inbox.deliver(delivery));
    }

    fn set_present(&self, room: &Room, session: SessionId, is_present: bool) {
        let Script { rooms, live, .. } = &mut *self.script();
        let log = rooms.log_mut(room);
        let has_changed = if is_present { log.present.insert(session) } else { log.present.remove(&session) };
        if has_changed {
            log.presence_version += 1;
            let kind = if is_present { PresenceKind::Joined } else { PresenceKind::Left };
            let event = PresenceEvent { kind, who: Who::Session(session), info: None, version: log.presence_version };
            if log.is_followed {
                live.push_back(Delivery { room: room.clone(), event: RoomEvent::Presence(event) });
            }
        }
    }

    /// Sessions of another node enter the room, or leave it.
    pub(super) fn crowd(&self, room: &Room, count: u8, is_present: bool) {
        (0..count).for_each(|number| self.set_present(room, SessionId([number; 12]), is_present));
    }

    /// Presence events on their way to the shard are lost, all but this many.
    pub(super) fn lose_presence(&self, keeps: usize) {
        let Script { rooms, live, .. } = &mut *self.script();
        let is_presence = |delivery: &Delivery| matches!(delivery.event, RoomEvent::Presence(_));
        let count = live.iter().filter(|delivery| is_presence(delivery)).count();
        let mut lost = count.saturating_sub(keeps);
        live.retain(|delivery| {
            let is_lost = is_presence(delivery) && lost > 0;
            lost -= usize::from(is_lost);
            rooms.log_mut(&delivery.room).needs_presence |= is_lost;
            !is_lost
        });
    }

    /// The shard learns of the room's head and presence, if it may lack something of which it cannot know otherwise.
    pub(super) fn tell_head(&self, room: &Room) {
        let mut script = self.script();
        let log = script.rooms.log_mut(room);
        let tell = |event| self.inbox.deliver(Delivery { room: room.clone(), event });
        if log.is_confirmed && std::mem::take(&mut log.needs_head) {
            tell(RoomEvent::Head(log.present_epoch().at(log.present_epoch().head())));
        }
        if log.is_confirmed && std::mem::take(&mut log.needs_presence) {
            tell(RoomEvent::PresenceVersion(log.presence_version));
        }
    }

    /// History keeps only this many of the messages that it has.
    pub(super) fn forget(&self, room: &Room, keeps: u64) {
        let mut script = self.script();
        let log = script.rooms.log_mut(room).epochs.last_mut().unwrap();
        log.forgotten = log.forgotten.max(log.head().saturating_sub(keeps));
    }

    pub(super) fn begin_epoch(&self, room: &Room) {
        let mut script = self.script();
        let log = script.rooms.log_mut(room);
        log.begin_epoch();
        log.needs_head = true;
    }

    pub(super) fn look(&self, pick: Pick) {
        let Script { rooms, requests, .. } = &mut *self.script();
        if let Some(index) = open_request(requests, pick) {
            requests[index].look(rooms);
        }
    }

    /// Replies to a request; with an error if there is a `failure`. Whether there was one.
    pub(super) fn reply(&self, pick: Pick, failure: Option<BrokerError>) -> bool {
        let Script { rooms, requests, .. } = &mut *self.script();
        let index = open_request(requests, pick);
        index.map(|index| requests.remove(index).reply(rooms, failure)).is_some()
    }

    fn ask<T: Send + 'static>(
        &self,
        may_be_refused: bool,
        read: impl Fn(&Rooms) -> T + Send + 'static,
    ) -> BrokerFuture<'static, T> {
        let (reply, replied) = oneshot::channel();
        let request = Request { read: Box::new(read), content: None, may_be_refused, reply };
        self.script().requests.push(Box::new(request));
        Box::pin(async { replied.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }
}

fn open_request(requests: &mut Vec<Box<dyn Held>>, pick: Pick) -> Option<usize> {
    requests.retain(|request| !request.is_given_up());
    let last = requests.len().checked_sub(1)?;
    Some(match pick {
        Pick::Oldest => 0,
        Pick::Newest => last,
        Pick::Any(number) => number % requests.len(),
    })
}

/// What is true, for the checks.
impl ScriptedBroker {
    pub(super) fn head(&self, room: &Room) -> Cursor {
        let script = self.script();
        let log = script.rooms.log(room).present_epoch();
        log.at(log.head())
    }

    /// The number in the `data` of a message; `None` if nothing was published there.
    pub(super) fn number(&self, room: &Room, at: Cursor) -> Option<u64> {
        let script = self.script();
        let log = script.rooms.log(room).epoch(at.epoch)?;
        let index = at.offset.0.checked_sub(1)?;
        log.messages.get(index as usize).map(|publication| publication.id.number)
    }

    /// Whether the room has, or had, this cursor.
    pub(super) fn has_reached(&self, room: &Room, at: Cursor) -> bool {
        self.script().rooms.log(room).epoch(at.epoch).is_some_and(|log| at.offset.0 <= log.head())
    }

    /// Whether history has no message any more between `from` and `to`, where it goes on.
    pub(super) fn has_lost(&self, room: &Room, from: Cursor, to: Cursor) -> bool {
        let script = self.script();
        let room = script.rooms.log(room);
        let number = |epoch: Epoch| room.epochs.iter().position(|log| log.epoch == epoch);
        let goes_on = room.epoch(to.epoch).is_some_and(|log| to.offset.0 <= log.forgotten);
        goes_on && (from.epoch == to.epoch || number(from.epoch) < number(to.epoch))
    }

    /// Whether history has every message of this epoch.
    pub(super) fn keeps_all(&self, room: &Room, epoch: Epoch) -> bool {
        self.script().rooms.log(room).epoch(epoch).is_some_and(|log| log.forgotten == 0)
    }

    pub(super) fn present(&self, room: &Room) -> BTreeSet<String> {
        self.script().rooms.log(room).present.iter().map(ToString::to_string).collect()
    }
}

impl Broker for ScriptedBroker {
    fn publish(&self, _: Publish, _: Reply) {
        unreachable!("no client publishes");
    }

    fn subscribe(&self, _: SubscriberId, room: &Room, _: Option<Retention>) -> BrokerFuture<'_, Option<Cursor>> {
        // Messages that come before the reply may be delivered: the head that the reply has covers them or not.
        self.script().rooms.log_mut(room).is_followed = true;
        let (room, name) = (room.clone(), room.clone());
        let asked = self.ask(true, move |rooms| {
            let log = rooms.log(&name).present_epoch();
            Some(log.at(log.head()))
        });
        Box::pin(async move {
            let head = asked.await?;
            self.script().rooms.log_mut(&room).is_confirmed = true;
            Ok(head)
        })
    }

    fn unsubscribe(&self, _: SubscriberId, room: &Room) {
        let mut script = self.script();
        let log = script.rooms.log_mut(room);
        (log.is_followed, log.is_confirmed) = (false, false);
    }

    fn history(&self, room: &Room, _: Retention, query: HistoryQuery) -> BrokerFuture<'_, Page> {
        let room = room.clone();
        self.ask(query.purpose != Purpose::CatchUp, move |rooms| rooms.log(&room).present_epoch().page(query))
    }

    fn update_presence(&self, room: &Room, update: PresenceUpdate) -> BrokerFuture<'_, ()> {
        let (session, is_present) = match update {
            PresenceUpdate::Enter { session, .. } => (session, true),
            PresenceUpdate::Leave { session, .. } => (session, false),
            PresenceUpdate::Lease { .. } | PresenceUpdate::EndLease { .. } => unreachable!("nobody polls"),
        };
        self.set_present(room, session, is_present);
        self.ask(true, |_| ())
    }

    fn presence(&self, room: &Room, _: PresenceDetail) -> BrokerFuture<'_, Arc<Presence>> {
        let room = room.clone();
        self.ask(true, move |rooms| {
            let log = rooms.log(&room);
            let member = |session: &SessionId| Member { who: Who::Session(*session), sessions: 1, info: None };
            let members: Vec<Member> = log.present.iter().map(member).collect();
            let count = members.len() as u64;
            Arc::new(Presence { sessions: count, users: count, members, version: log.presence_version, head: None })
        })
    }

    fn rooms(&self, _: RoomQuery) -> BrokerFuture<'_, RoomList> {
        unreachable!("nobody lists rooms");
    }

    fn send_control(&self, _: NodeTarget, _: Bytes) -> BrokerFuture<'_, bool> {
        unreachable!("nobody is kicked, and nothing is posted");
    }

    fn availability(&self, _: &Room) -> Result<(), BrokerError> {
        Ok(())
    }

    fn status(&self) -> Status {
        Status { node: NodeId(1), up: true, reconnects: 0, in_flight: 0, rooms: 0, unreadable: 0 }
    }

    fn close(&self) -> BrokerFuture<'_, ()> {
        unreachable!("the node does not end");
    }
}
