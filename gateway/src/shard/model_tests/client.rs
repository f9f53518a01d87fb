//! A client of the model test: one end of a socket whose other end the shard has. It reads what the shard wrote, as
//! bytes, and checks each frame against what clients are promised (docs/protocol.md). It trusts nothing but the frames,
//! its own commands and the broker's record of what was published.

use super::{ROOMS, broker::ScriptedBroker};
use crate::{
    protocol::FrameShape,
    shard::{Opening, SessionRef, Shard, UrlRoom},
};
use bytes::Bytes;
use fanfare_broker::{Cursor, Room};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{ErrorKind, Read},
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
    rc::Rc,
};

/// What a join asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) presence: bool,
    pub(super) history: u64,
    pub(super) since: Option<Cursor>,
    /// The room had come to that cursor.
    pub(super) is_past: bool,
}

/// What came when a client read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Something,
    /// The shard has closed the session.
    End,
}

pub(super) struct Client {
    shape: FrameShape,
    pub(super) reads: bool,
    connection: Connection,
    /// By the number of the room.
    rooms: [Membership; ROOMS],
    /// Commands without an answer, by their ids.
    asked: BTreeMap<u64, Asked>,
    /// The ids of commands `presence` without a whole answer, in their order.
    questions: VecDeque<u64>,
    next_id: u64,
    /// What is being checked, for the message of a failure.
    name: String,
}

struct Connection {
    session: SessionRef,
    socket: UnixStream,
    /// What was read and is not a whole frame.
    bytes: Vec<u8>,
}

/// What the client knows of itself in one room.
#[derive(Debug, Clone, Default)]
struct Membership {
    /// How far it has read, also after it has left.
    at: Option<Cursor>,
    /// It has had a `joined` and no `left`.
    is_in: bool,
    /// Its latest command was a join, and was not refused.
    wants: bool,
    /// A join was refused while it was in the room: a `left` follows.
    must_leave: bool,
    /// The id of its latest command.
    latest: u64,
    /// The id of the latest join that was answered by `joined`.
    joined: u64,
    /// The id of the latest join that was answered, and not because a later one had overtaken it.
    settled: u64,
    /// The `since` of the latest join that had one, if no leave has followed.
    resumes: Option<Resume>,
    /// Who is in the room, if it asked for that.
    members: Option<BTreeSet<String>>,
    /// The rest of that list follows.
    has_more: bool,
    /// The same by the latest answer to `presence` and the events after it, if nothing has replaced that list.
    answer: Option<BTreeSet<String>>,
    /// The rest of that answer follows.
    answer_has_more: bool,
}

/// From where a join resumes. Later joins resume there too, unless it is answered before them.
#[derive(Debug, Clone, Copy)]
struct Resume {
    id: u64,
    since: Cursor,
    /// The room had come to that cursor.
    is_past: bool,
}

#[derive(Debug)]
struct Asked {
    id: u64,
    room: usize,
    /// `None`: a leave.
    join: Option<Wish>,
    /// The `since` that counts for a join.
    resumes: Option<Resume>,
}

/// A text that the shard sent.
struct Frame {
    json: Value,
    /// The id of a server-sent event.
    id: Option<String>,
}

impl Client {
    pub(super) fn connect(number: usize, shard: &Shard, rooms: &[Room]) -> Self {
        let shape = FrameShape::ALL[number % FrameShape::COUNT];
        let memberships = <[Membership; ROOMS]>::default();
        let connection = Connection::open(shard, shape, rooms, &memberships);
        let (asked, name) = (BTreeMap::new(), format!("client {number} ({})", shape.transport()));
        let questions = VecDeque::new();
        Self { shape, reads: true, connection, rooms: memberships, asked, questions, next_id: 1, name }
    }

    /// Leaves its connection as it is, and resumes over a new one.
    pub(super) fn reconnect(&mut self, shard: &Shard, rooms: &[Room]) {
        shard.remove(self.connection.session);
        self.asked.clear();
        self.questions.clear();
        for membership in &mut self.rooms {
            (membership.is_in, membership.must_leave, membership.members) = (false, false, None);
            (membership.resumes, membership.answer) = (None, None);
        }
        self.connection = Connection::open(shard, self.shape, rooms, &self.rooms);
        for (number, room) in rooms.iter().enumerate() {
            if self.rooms[number].wants {
                let wish = Wish { presence: false, history: 0, since: self.rooms[number].at, is_past: true };
                self.join(shard, number, room, wish);
            }
        }
    }

    pub(super) fn at(&self, room: usize) -> Option<Cursor> {
        self.rooms[room].at
    }

    pub(super) fn join(&mut self, shard: &Shard, number: usize, room: &Room, wish: Wish) {
        let mut command = json!({"type": "join", "room": room.as_str(), "history": wish.history});
        command["presence"] = wish.presence.into();
        command["since"] = wish.since.map(|since| since.to_string()).into();
        self.rooms[number].wants = true;
        self.command(shard, command, number, Some(wish));
    }

    pub(super) fn leave(&mut self, shard: &Shard, number: usize, room: &Room) {
        // A leave of a room that it is not in is an error, and too many of them end the session.
        if self.rooms[number].wants {
            self.rooms[number].wants = false;
            let command = json!({"type": "leave", "room": room.as_str()});
            self.command(shard, command, number, None);
        }
    }

    pub(super) fn ask(&mut self, shard: &Shard, room: &Room) {
        if self.shape == FrameShape::WebSocket {
            let command = json!({"type": "presence", "room": room.as_str(), "id": self.next_id});
            self.questions.push_back(self.next_id);
            self.next_id += 1;
            shard.receive(self.connection.session, &command.to_string());
        }
    }

    fn command(&mut self, shard: &Shard, mut command: Value, room: usize, join: Option<Wish>) {
        let id = self.next_id;
        command["id"] = id.into();
        let membership = &mut self.rooms[room];
        membership.latest = id;
        membership.resumes = join.and_then(|Wish { since, is_past, .. }| {
            since.map(|since| Resume { id, since, is_past }).or(membership.resumes)
        });
        self.asked.insert(id, Asked { id, room, join, resumes: membership.resumes });
        self.next_id += 1;
        shard.receive(self.connection.session, &command.to_string());
    }

    /// Reads and checks what has come.
    pub(super) fn read(&mut self, broker: &ScriptedBroker, rooms: &[Room]) -> Heard {
        let heard = self.connection.read();
        while let Some(frame) = self.connection.next_frame(self.shape) {
            let named = frame.json["room"].as_str();
            let number = rooms.iter().position(|room| Some(room.as_str()) == named);
            let id = frame.json["id"].as_u64();
            match (frame.json["type"].as_str(), number) {
                (Some("welcome"), None) => {}
                (Some("close"), None) => return Heard::End,
                (Some(_), Some(number)) if id.is_some() && self.questions.front() == id.as_ref() => {
                    self.on_answer(number, &frame.json);
                }
                (Some("error"), Some(number)) => self.on_error(number, &frame.json),
                (Some(kind), Some(number)) => {
                    let asked = id.map(|id| self.answered(id, number, &frame.json));
                    let name = format!("{}: {}", self.name, frame.json);
                    let check = Check { membership: &mut self.rooms[number], room: &rooms[number], broker, name };
                    check.frame(kind, &frame.json, asked);
                }
                _ => panic!("{}: unexpected {}", self.name, frame.json),
            }
            if let Some(id) = frame.id {
                let cursors = self.rooms.iter().map(|room| room.at.map(|at| at.to_string()).unwrap_or_default());
                assert_eq!(id, cursors.collect::<Vec<_>>().join("~"), "{}: the id of {}", self.name, frame.json);
            }
        }
        heard
    }

    /// The command that a frame answers. Each is answered once.
    fn answered(&mut self, id: u64, number: usize, json: &Value) -> Asked {
        let asked = self.asked.remove(&id).unwrap_or_else(|| panic!("{}: answered twice: {json}", self.name));
        assert_eq!(asked.room, number, "{}: {json}", self.name);
        asked
    }

    /// A frame of the answer to the oldest question: the list, a portion of it, or an error.
    fn on_answer(&mut self, number: usize, json: &Value) {
        let membership = &mut self.rooms[number];
        match (json["type"].as_str(), users(json)) {
            (Some("presence"), Some(users)) => {
                assert!(!membership.has_more, "{}: two lists at a time: {json}", self.name);
                membership.answer = membership.members.as_ref().map(|_| users);
            }
            (Some("members"), Some(users)) => membership.answer.iter_mut().for_each(|all| all.extend(users.clone())),
            (Some("error"), None) => {}
            _ => panic!("{}: unexpected {json}", self.name),
        }
        membership.answer_has_more = json["more"] == true;
        if !membership.answer_has_more {
            self.questions.pop_front();
        }
    }

    fn on_error(&mut self, number: usize, json: &Value) {
        let Some(id) = json["id"].as_u64() else {
            // A join that was answered by `joined` could not be completed.
            let membership = &mut self.rooms[number];
            membership.wants &= membership.latest != membership.joined;
            membership.must_leave = membership.is_in;
            return assert!(membership.is_in, "{}: {json}", self.name);
        };
        let asked = self.answered(id, number, json);
        let membership = &mut self.rooms[number];
        let is_latest = membership.latest == id;
        match (json["code"] == "not_joined", asked.join) {
            (true, Some(_)) => assert!(!is_latest, "{}: nothing has overtaken this join: {json}", self.name),
            (true, None) => {}
            (false, None) => panic!("{}: a leave failed: {json}", self.name),
            (false, Some(_)) => {
                membership.settled = id;
                membership.wants &= !is_latest;
                membership.must_leave = membership.is_in;
            }
        }
    }

    /// What is wrong at the end, when everything has been delivered and answered.
    pub(super) fn is_lacking(&self, broker: &ScriptedBroker, rooms: &[Room]) -> Option<String> {
        let lacks = |(membership, room): (&Membership, &Room)| {
            let is_complete = !membership.is_in || membership.at == Some(broker.head(room));
            let lists = membership.members.iter().chain(&membership.answer);
            let lists_all = lists.into_iter().all(|members| *members == broker.present(room));
            let is_fine = membership.is_in == membership.wants && is_complete && lists_all;
            let head = broker.head(room);
            (!is_fine).then(|| format!("{}: at the end in {}: head {head}, {membership:?}", self.name, room.as_str()))
        };
        let Self { name, asked, questions, .. } = self;
        let is_answered = asked.is_empty() && questions.is_empty();
        let unanswered = || (!is_answered).then(|| format!("{name}: unanswered {asked:?}, {questions:?}"));
        self.rooms.iter().zip(rooms).find_map(lacks).or_else(unanswered)
    }
}

impl Connection {
    /// Two ends of a Unix socket stand for a TCP connection: what is written to one can be read from the other at once,
    /// so that nothing but the test decides what happens when.
    fn open(shard: &Shard, shape: FrameShape, rooms: &[Room], memberships: &[Membership]) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        // A WebSocket's is the least that the kernel allows: some five writes fit.
        let bytes = if shape == FrameShape::WebSocket { 1 } else { 32 << 10 };
        socket2::SockRef::from(&theirs).set_send_buffer_size(bytes).unwrap();
        let theirs = tokio::net::TcpStream::from_std(TcpStream::from(OwnedFd::from(theirs))).unwrap();
        let url_room = |(room, membership): (&Room, &Membership)| UrlRoom {
            name: room.clone(),
            is_numbered: true,
            reached: membership.at,
        };
        let rooms = match shape {
            FrameShape::WebSocket => Vec::new(),
            FrameShape::Sse | FrameShape::Line => rooms.iter().zip(memberships).map(url_room).collect(),
        };
        let session = shard.open(Rc::new(theirs), None, Opening { shape, head: Bytes::new(), rooms });
        Self { session, socket, bytes: Vec::new() }
    }

    /// Reads what is there.
    fn read(&mut self) -> Heard {
        let mut heard = Heard::Nothing;
        loop {
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Heard::End,
                Ok(count) => self.bytes.extend_from_slice(&bytes[..count]),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return heard,
                Err(why) => panic!("the socket failed: {why}"),
            }
            heard = Heard::Something;
        }
    }

    /// Takes the next whole frame out of what was read. A close frame is given as the event `close`.
    fn next_frame(&mut self, shape: FrameShape) -> Option<Frame> {
        let (frame, len) = match shape {
            FrameShape::WebSocket => websocket_frame(&self.bytes)?,
            FrameShape::Line => {
                let len = self.bytes.iter().position(|byte| *byte == b'\n')?;
                (Frame { json: serde_json::from_slice(&self.bytes[..len]).unwrap(), id: None }, len + 1)
            }
            FrameShape::Sse => {
                let len = self.bytes.windows(2).position(|bytes| bytes == b"\n\n")?;
                (server_sent_event(&self.bytes[..len]), len + 2)
            }
        };
        self.bytes.drain(..len);
        Some(frame)
    }
}

/// A frame, and its length.
fn websocket_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (start, len) = match *bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, len @ ..=125, ..] => (2, usize::from(len)),
        _ => return None,
    };
    let text = bytes.get(start..start + len)?;
    let json = match bytes[0] & 0xF {
        1 => serde_json::from_slice(text).unwrap(),
        8 => json!({"type": "close"}),
        opcode => panic!("a frame of kind {opcode}"),
    };
    Some((Frame { json, id: None }, start + len))
}

fn server_sent_event(bytes: &[u8]) -> Frame {
    let text = std::str::from_utf8(bytes).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let json = serde_json::from_str(field("data:").unwrap()).unwrap();
    Frame { json, id: field("id:").map(str::to_owned) }
}

/// One frame about one room, to be checked.
struct Check<'a> {
    membership: &'a mut Membership,
    room: &'a Room,
    broker: &'a ScriptedBroker,
    name: String,
}

impl Check<'_> {
    fn frame(mut self, kind: &str, json: &Value, asked: Option<Asked>) {
        let name = self.name.clone();
        assert!(!self.membership.must_leave || kind == "left", "no `left` after the refusal: {name}");
        let cursor = |field: &str| json[field].as_str().and_then(|text| text.parse::<Cursor>().ok());
        let user = || json["member"]["user"].as_str().unwrap().to_owned();
        match (kind, asked) {
            ("joined", Some(Asked { id, join: Some(wish), resumes, .. })) => {
                let resumes = resumes.filter(|resume| resume.id > self.membership.settled);
                self.joined(json, cursor("cursor").unwrap(), &wish, resumes);
                (self.membership.joined, self.membership.settled) = (id, id);
            }
            ("message", None) => self.message(json, cursor("cursor").unwrap()),
            ("gap", None) => self.gap(cursor("from").unwrap(), cursor("to").unwrap()),
            ("left", Some(Asked { join: None, .. })) => self.left(),
            ("left", None) if self.membership.must_leave => self.left(),
            ("presence", None) => {
                self.membership.answer = None;
                *self.members() = users(json).unwrap();
                self.membership.has_more = json["more"] == true;
            }
            ("members", None) => {
                assert!(self.membership.has_more, "the list is complete: {name}");
                self.members().extend(users(json).unwrap());
                self.membership.has_more = json["more"] == true;
            }
            ("member_joined" | "member_left", None) => {
                assert!(!self.membership.has_more, "the list is not complete: {name}");
                let has_joined = kind == "member_joined";
                // The answer may have this change already.
                if let Some(answer) = &mut self.membership.answer {
                    assert!(!self.membership.answer_has_more, "the answer is not complete: {name}");
                    _ = if has_joined { answer.insert(user()) } else { answer.remove(&user()) };
                }
                let is_new = if has_joined { self.members().insert(user()) } else { self.members().remove(&user()) };
                assert!(is_new, "it has had this change: {name}");
            }
            (_, asked) => panic!("unexpected {name} as an answer to {asked:?}"),
        }
    }

    fn joined(&mut self, json: &Value, cursor: Cursor, wish: &Wish, resumes: Option<Resume>) {
        let Self { membership, room, broker, name } = self;
        assert!(broker.has_reached(room, cursor), "no such cursor: {name}");
        let resumed = json["resumed"].as_bool();
        assert_eq!(resumed.is_some(), resumes.is_some(), "{name}");
        match (resumes, resumed) {
            _ if membership.is_in => {
                assert_eq!(membership.at, Some(cursor), "a member goes on from where it stood: {name}");
                assert_ne!(resumed, Some(false), "a member goes on from where it stood: {name}");
            }
            (Some(Resume { since, .. }), Some(true)) => assert_eq!(cursor, since, "{name}"),
            (Some(Resume { since, is_past, .. }), _) => {
                let missed = (since.epoch == cursor.epoch).then(|| cursor.offset.0.checked_sub(since.offset.0));
                assert_eq!(json["gap"]["missed"].as_u64(), missed.flatten(), "{name}");
                let is_true = (missed == Some(None) && !is_past) || broker.has_lost(room, since, cursor);
                assert!(is_true, "a gap although history has the messages: {name}");
            }
            (None, _) if broker.keeps_all(room, cursor.epoch) && broker.head(room).epoch == cursor.epoch => {
                let latest = broker.head(room).offset.0.saturating_sub(wish.history);
                assert!(cursor.offset.0 <= latest, "less history than it asked for: {name}");
            }
            (None, _) => {}
        }
        let members = users(json);
        membership.has_more = json["more"] == true;
        assert_eq!(members.is_some(), wish.presence, "{name}");
        (membership.is_in, membership.at, membership.members) = (true, Some(cursor), members);
        membership.answer = None;
    }

    fn members(&mut self) -> &mut BTreeSet<String> {
        let Self { membership, name, .. } = self;
        membership.members.as_mut().unwrap_or_else(|| panic!("it did not ask for members: {name}"))
    }

    fn message(&mut self, json: &Value, cursor: Cursor) {
        let Self { membership, room, broker, name } = self;
        assert!(membership.is_in, "a message for a client that is not in the room: {name}");
        let at = membership.at.unwrap();
        let next = Cursor::new(at.epoch, at.offset.next());
        assert_eq!(cursor, next, "a hole without a gap, or a repeat, after {at}: {name}");
        assert_eq!(json["data"].as_u64(), broker.number(room, cursor), "not what was published: {name}");
        membership.at = Some(cursor);
    }

    fn gap(&mut self, from: Cursor, to: Cursor) {
        let Self { membership, room, broker, name } = self;
        assert!(membership.is_in, "a gap for a client that is not in the room: {name}");
        assert_eq!(membership.at, Some(from), "{name}");
        assert!(from.epoch != to.epoch || from.offset < to.offset, "an empty gap: {name}");
        assert!(broker.has_lost(room, from, to), "a gap although history has the messages: {name}");
        membership.at = Some(to);
    }

    fn left(&mut self) {
        (self.membership.is_in, self.membership.must_leave, self.membership.members) = (false, false, None);
        self.membership.answer = None;
    }
}

/// The users in a frame's list of members.
fn users(json: &Value) -> Option<BTreeSet<String>> {
    let members = json["members"].as_array()?.iter();
    Some(members.map(|member| member["user"].as_str().unwrap().to_owned()).collect())
}
