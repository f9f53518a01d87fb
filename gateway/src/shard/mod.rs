//! A shard: one thread that owns its sessions, its rooms' member lists and its sockets. A session lives its whole
//! life on one shard. Nothing here is shared or locked; other threads reach a shard through its inbox alone.
//!
//! Called by `transport` (sockets, bytes in) and `app` (the loop). Never waits while it holds its state.
//!
//! | file | |
//! |---|---|
//! | `inbox` | what other threads have for a shard |
//! | `rooms`, `feed` | rooms, members, and deliveries without holes |
//! | `join`, `leave`, `catch_up` | coming and going; filling holes |
//! | `commands`, `posts` | what clients ask for, over their own connection or by posting |
//! | `streams` | sessions whose clients cannot send: where they are, heartbeats, their age |
//! | `polls` | rooms that polls look at and wait for |
//! | `fanout`, `flush` | the hot path: encode once, queue, write |
//! | `timers`, `wheel` | pings, deadlines, lingering rooms |
//! | `retry` | waits when the broker fails |
//! | `conn`, `control`, `drain` | the table of sessions; kicks; drain |
//! | `bench` | for the benchmark of the fan-out |

mod bench;
mod catch_up;
mod commands;
mod conn;
mod control;
mod drain;
mod fanout;
mod feed;
mod flush;
mod join;
mod leave;
mod polls;
mod posts;
mod retry;
mod rooms;
mod streams;
mod timers;
mod wheel;

pub(crate) use bench::Crowd;
pub(crate) use conn::SessionRef;
pub(crate) use polls::{Look, Watch};
pub(crate) use streams::Opening;

use crate::{
    node::{
        Node,
        inbox::{Inbox, Item},
    },
    policy::peer::ConnectionPermit,
    protocol::{
        FrameShape,
        address::{PostAddress, Secret},
        close::CloseReason,
        control_frame,
        event::{Event, WelcomeLimits},
        native, put_frame,
    },
    session::{Frames, Outbox, Session, keepalive::Keepalive},
    time::unix_ms,
};
use bytes::{Bytes, BytesMut};
use conn::{Conn, FlushQueue, Phase, Sessions, Stream, Timer};
use fanfare_broker::{Delivery, RoomEvent, SessionId, SubscriberId};
use posts::Posts;
use rooms::Rooms;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::{net::TcpStream, sync::Notify};

/// How long a closing session may take to read its last frames and go, in milliseconds.
const CLOSING_MS: u32 = 3_000;

/// See the module's head.
pub(crate) struct Shard {
    pub(crate) node: Arc<Node>,
    me: SubscriberId,
    inbox: Arc<Inbox>,
    /// Sessions, for the acceptor that balances them.
    load: Arc<AtomicUsize>,
    started: Instant,
    /// Wakes the timer task when something is filed after nothing was.
    timers: Notify,
    /// HTTP requests being answered: a drain waits for them.
    requests: Rc<Cell<usize>>,
    /// As many references as there are posts for nodes that nobody hears as, and one.
    looking: Rc<()>,
    state: RefCell<State>,
    this: std::rc::Weak<Self>,
}

/// What a shard owns.
struct State {
    sessions: Sessions,
    rooms: Rooms,
    /// Rooms with a batch to hand to their members at the end of this pass.
    dirty: Vec<u32>,
    urgent: VecDeque<u32>,
    bulk: VecDeque<u32>,
    wheel: wheel::Wheel<Timer>,
    /// Empty rooms and when to look at them again, in the order of that: those that members left, and polls.
    lingering: [VecDeque<(u32, rooms::RoomKey)>; 2],
    posts: Posts,
    /// Bytes in all outboxes, and how many of them the metric knows of.
    outbox_bytes: usize,
    outbox_told: i64,
    /// Spare for [`Inbox::take`].
    items: Vec<Item>,
}

/// An HTTP request that is being answered.
pub(crate) struct CountedRequest(Rc<Cell<usize>>);

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Shard {
    pub(crate) fn new(node: Arc<Node>, me: SubscriberId, inbox: Arc<Inbox>, load: Arc<AtomicUsize>) -> Rc<Self> {
        let state = State {
            sessions: Sessions::default(),
            rooms: Rooms::default(),
            dirty: Vec::new(),
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            wheel: wheel::Wheel::new(),
            lingering: Default::default(),
            posts: Posts::default(),
            outbox_bytes: 0,
            outbox_told: 0,
            items: Vec::new(),
        };
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            node,
            me,
            inbox,
            load,
            started: Instant::now(),
            timers: Notify::new(),
            requests: Rc::default(),
            looking: Rc::default(),
            state: RefCell::new(state),
        })
    }

    /// The shard's clock: milliseconds since it started, wrapping after 49 days. Monotonic: no clock step moves it.
    fn now_ms(&self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }

    /// Serves for ever: takes the inbox, fans out, flushes, and lets others run in between.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            while self.is_idle() {
                self.inbox.woken().await;
            }
            let began = Instant::now();
            let delivered = self.take_inbox();
            self.flush_some();
            if delivered {
                self.node.metrics.fanout_seconds.observe(began.elapsed().as_secs_f64());
            }
            tokio::task::yield_now().await;
        }
    }

    fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.urgent.is_empty() && state.bulk.is_empty() && state.dirty.is_empty() && self.inbox.is_empty()
    }

    /// Does all that waits in the inbox; `true` if members were delivered to.
    fn take_inbox(self: &Rc<Self>) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut items = std::mem::take(&mut state.items);
        self.inbox.take(&mut items);
        self.observe_lag(&items);
        let mut delivered = false;
        for item in items.drain(..) {
            match item {
                Item::Deliver(delivery) => self.on_delivery(state, delivery),
                Item::Published(ticket, room, outcome) => self.on_published(state, ticket, &room, outcome),
                Item::Control(message) => {
                    // A posted command may join or leave: what was delivered so far is for those who were members then.
                    delivered |= self.fan_out(state);
                    self.on_control(state, message);
                }
                Item::Behind(room) => self.on_behind(state, &room),
            }
        }
        state.items = items;
        self.fan_out(state) || delivered
    }

    /// How old the newest message is: one look at the clock per batch.
    fn observe_lag(&self, items: &[Item]) {
        let newest = items.iter().rev().find_map(|item| match item {
            Item::Deliver(Delivery { event: RoomEvent::Message(message), .. }) => Some(message.ts_ms),
            _ => None,
        });
        if let Some(ts_ms) = newest {
            let lag_ms = unix_ms().saturating_sub(ts_ms);
            self.node.metrics.backplane_lag_seconds.observe(lag_ms as f64 / 1000.0);
        }
    }

    // --- a session's life ---

    /// Takes a socket whose handshake is over, but for the answer, and greets the client.
    pub(crate) fn open(&self, socket: Rc<TcpStream>, seat: Option<ConnectionPermit>, opening: Opening) -> SessionRef {
        let now_ms = self.now_ms();
        let Opening { shape, head, rooms } = opening;
        let secret = Secret::random();
        let ends_ms = now_ms.wrapping_add(streams::age_ms());
        let stream = (shape != FrameShape::WebSocket).then(|| Box::new(Stream { secret, rooms, ends_ms }));
        let id = SessionId::random();
        let limits = &self.node.limits;
        let session = Session::new(id, None, limits, now_ms);
        let state = &mut *self.state.borrow_mut();
        let who = state.sessions.insert(|generation| Conn {
            generation,
            queued_in: FlushQueue::None,
            phase: Phase::Open,
            blocked: false,
            stale_filed: false,
            shape,
            live: Keepalive::new(now_ms),
            socket,
            outbox: Outbox::default(),
            session,
            drained: None,
            _seat: seat,
            stream,
        });
        self.load.store(state.sessions.len(), Ordering::Relaxed);
        self.node.metrics.sessions[shape as usize].inc();
        self.node.metrics.sessions_opened[shape as usize].inc();
        let ping_ms = self.ping_ms(who.index, shape);
        self.start_wheel_entry(state, Timer::Keepalive(who), ping_ms);
        self.queue(state, who.index, Frames { bytes: head, count: 1 });
        let post = (shape != FrameShape::WebSocket).then(|| {
            let address = PostAddress { node: self.node.id, shard: self.me.0, slot: who.to_u64(), secret };
            format!("/v1/sessions/{address}")
        });
        let welcome = Event::Welcome {
            session: id,
            node: &self.node.name,
            route: &self.node.route,
            post: post.as_deref(),
            ping_ms: u64::from(ping_ms),
            limits: WelcomeLimits { message_bytes: limits.message_bytes, rooms: limits.rooms_per_session },
        };
        self.send(state, who.index, &welcome);
        who
    }

    /// Ends a session: it leaves its rooms at once, its last frames and a close frame go out, then it is removed.
    /// `reply` is the codec's own answer to a client's close frame, sent in place of ours.
    fn end(&self, state: &mut State, who: SessionRef, reason: CloseReason, reply: Option<Bytes>) {
        let Some(conn) = state.sessions.open(who) else { return };
        conn.phase = Phase::Closing;
        conn.drained = None;
        let before = conn.outbox.bytes();
        if !conn::keeps_outbox(reason) {
            conn.outbox.discard();
        }
        let shape = conn.shape;
        let bytes = reply.unwrap_or_else(|| match shape {
            FrameShape::WebSocket => control_frame::close(reason),
            FrameShape::Event | FrameShape::Line => streams::close(shape, reason),
        });
        conn.outbox.push_unbounded(Frames { bytes, count: 1 }, self.now_ms());
        state.outbox_bytes = state.outbox_bytes + conn.outbox.bytes() - before;
        self.leave_all(state, who);
        self.cancel_posts(state, who);
        self.node.metrics.sessions[shape as usize].dec();
        self.node.metrics.session_closed(reason);
        if reason == CloseReason::TooSlow {
            self.node.metrics.slow_consumers.inc();
        }
        self.start_wheel_entry(state, Timer::Closed(who), CLOSING_MS);
        self.mark_dirty(state, who.index, FlushQueue::Urgent);
    }

    /// The reader's last word: the socket gives no more bytes. The one place where a session is removed.
    pub(crate) fn remove(&self, who: SessionRef) {
        let state = &mut *self.state.borrow_mut();
        self.end(state, who, CloseReason::Gone, Some(Bytes::new()));
        if let Some(conn) = state.sessions.remove(who) {
            state.outbox_bytes -= conn.outbox.bytes();
        }
        self.load.store(state.sessions.len(), Ordering::Relaxed);
    }

    /// Any bytes from the client are a sign of life.
    pub(crate) fn heard(&self, who: SessionRef) {
        let now_ms = self.now_ms();
        if let Some(conn) = self.state.borrow_mut().sessions.open(who) {
            conn.live.heard(now_ms);
        }
    }

    /// Queues what the WebSocket codec answers by itself (pongs), at a frame border like everything else.
    pub(crate) fn answer_control(&self, who: SessionRef, frames: Bytes) {
        let state = &mut *self.state.borrow_mut();
        if state.sessions.open(who).is_some() {
            self.queue(state, who.index, Frames { bytes: frames, count: 1 });
        }
    }

    /// Ends a session because of what its client sent.
    pub(crate) fn close(&self, who: SessionRef, reason: CloseReason, reply: Option<Bytes>) {
        self.end(&mut self.state.borrow_mut(), who, reason, reply);
    }

    /// Counts an HTTP request for as long as the result lives.
    pub(crate) fn count_request(&self) -> CountedRequest {
        self.requests.set(self.requests.get() + 1);
        CountedRequest(Rc::clone(&self.requests))
    }

    // --- sending to one session ---

    fn send(&self, state: &mut State, index: u32, event: &Event<'_>) {
        self.send_at(state, index, event, None);
    }

    /// Sends an event after which the client stands at a place in a room.
    fn send_at(&self, state: &mut State, index: u32, event: &Event<'_>, at: Option<streams::At>) {
        let Some(shape) = state.sessions.at(index).map(|conn| conn.shape) else { return };
        let id = at.and_then(|at| state.note_reached(index, at));
        let mut bytes = BytesMut::new();
        native::put_event(&mut bytes, shape, event, id.as_deref());
        self.queue(state, index, Frames { bytes: bytes.freeze(), count: 1 });
    }

    /// Sends a WebSocket's client a text that is encoded already.
    fn send_text(&self, state: &mut State, index: u32, text: &[u8]) {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, FrameShape::WebSocket, &[text]);
        self.queue(state, index, Frames { bytes: bytes.freeze(), count: 1 });
    }

    /// Queues frames for one open session; one that reads too slowly is closed.
    fn queue(&self, state: &mut State, index: u32, frames: Frames) {
        let Some(conn) = state.sessions.at(index).filter(|conn| conn.phase == Phase::Open) else { return };
        let bytes = frames.bytes.len();
        let who = SessionRef { index, generation: conn.generation };
        if conn.outbox.push(frames.clone(), self.now_ms(), &self.node.outbox_limits).is_err() {
            // The shard may not have come round to it yet: the socket has its say first.
            if !conn.blocked {
                self.flush(state, index);
            }
            let Some(conn) = state.sessions.open(who) else { return };
            if conn.outbox.push(frames, self.now_ms(), &self.node.outbox_limits).is_err() {
                return self.end(state, who, CloseReason::TooSlow, None);
            }
        }
        state.outbox_bytes += bytes;
        self.mark_dirty(state, index, FlushQueue::Urgent);
    }

    /// Puts a session into a flush queue, unless it is in one or its socket is full.
    fn mark_dirty(&self, state: &mut State, index: u32, queue: FlushQueue) {
        let Some(conn) = state.sessions.at(index) else { return };
        if conn.blocked || conn.queued_in == FlushQueue::Urgent || conn.queued_in == queue {
            return;
        }
        conn.queued_in = queue;
        let queue = if queue == FlushQueue::Urgent { &mut state.urgent } else { &mut state.bulk };
        if queue.is_empty() {
            self.inbox.wake();
        }
        queue.push_back(index);
    }
}
