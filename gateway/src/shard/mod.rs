//! A shard: one thread with its sessions, their sockets, and the rooms that they are in. A session stays on its shard
//! for life. Nothing here is locked; other threads reach a shard through its inbox alone.
//!
//! Called by `transport` (sockets, and what clients send) and `app` (the loop).
//!
//! # Three types, and what their methods may do
//!
//! - [`Shard`] is the handle, shared by the tasks of the thread. Its plain methods are **calls** of a transport: they
//!   borrow the state, take one step and return. Its `async` methods are **tasks**: the loop, the timers, and whatever
//!   waits for the broker, a socket or a time. A task borrows the state for one step at a time, never while it waits.
//! - `State` is what the shard owns. Its methods are **steps**: they take `&mut self`, run to their end and wait for
//!   nothing. What has to wait they start as a task.
//! - `Pass` delivers messages. It holds the rooms and the outboxes borrowed from `State::pass` until every room's batch
//!   has been handed out. Joins, leaves and commands are steps of `State`, so none of them can come between a message
//!   and the members it was encoded for.
//!
//! The owners inside `State` (`Outgoing`, `Rooms`, `Posts`) know neither `State` nor each other.
//!
//! | file | |
//! |---|---|
//! | `conn`, `outgoing` | data: sessions; their outboxes and who is written to next |
//! | `rooms`, `room`, `members`, `feed`, `batch` | data: the table of rooms; one room and its parts; its sequence without holes; the frames of one pass |
//! | `fanout` | the hot path: `Pass` encodes once and queues for many |
//! | `sessions`, `timers`, `drain` | a session's life; pings and deadlines; the drain |
//! | `join`, `admit`, `catch_up` | into a room and out of it; holes filled from history |
//! | `commands`, `polls`, `control` | what clients ask; rooms that polls watch; control messages |
//! | `posts`, `posted` | commands that clients post: the table; the way to the session's shard and back |
//! | `reply_to`, `clock` | where a reply goes; times |
//! | `bench` | access for the benchmark of the fan-out |

mod admit;
mod batch;
mod bench;
mod catch_up;
mod clock;
mod commands;
mod conn;
mod control;
mod drain;
mod fanout;
mod feed;
mod join;
mod members;
mod outgoing;
mod polls;
mod posted;
mod posts;
mod reply_to;
mod room;
mod rooms;
mod sessions;
mod timers;

pub use bench::Crowd;
pub(crate) use conn::{Opening, SessionRef, UrlRoom};
pub(crate) use polls::{Look, Watch};

use crate::{
    node::{
        Node,
        inbox::{Inbox, Item, Taken},
    },
    time::unix_ms,
};
use clock::{Clock, Wheel};
use conn::{Sessions, Timer};
use fanfare_broker::{Delivery, RoomEvent, SubscriberId};
use fanout::Pass;
use outgoing::Outgoing;
use posts::Posts;
use rooms::Rooms;
use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Writes of one turn. 64 small ones take about 0.8 ms: so long a member of a small room waits at most behind a large
/// one. The loop has to yield by itself, because `try_write` does not count against tokio's budget for a task.
const WRITES_MAX: usize = 64;
/// How long a turn may write.
const TIME_MAX: Duration = Duration::from_micros(500);
/// Writes between two looks at the clock.
const CLOCK_EVERY: usize = 16;
/// One write of this many goes to the bulk queue, so that many small rooms cannot starve a large one.
const BULK_EVERY: usize = 8;

/// One shard, as transports and the shard's own tasks hold it.
pub(crate) struct Shard {
    pub(crate) node: Arc<Node>,
    me: SubscriberId,
    inbox: Arc<Inbox>,
    clock: Clock,
    /// Notified when the first timer or lingering room is filed.
    timer_filed: Rc<Notify>,
    /// One reference here, and one for each HTTP request being answered; a drain waits for those.
    pub(crate) requests: Rc<()>,
    /// One reference here, and one for each post that waits for a node under whose id no node is subscribed.
    lookups: Rc<()>,
    state: RefCell<State>,
}

/// What a shard owns.
struct State {
    node: Arc<Node>,
    me: SubscriberId,
    clock: Clock,
    /// The handle, for tasks.
    shard: Weak<Shard>,
    outgoing: Outgoing,
    rooms: Rooms,
    posts: Posts,
    wheel: Wheel<Timer>,
    timer_filed: Rc<Notify>,
    /// Empty, between two turns of the loop: kept for its memory.
    taken: Taken,
}

impl Shard {
    pub(crate) fn new(node: Arc<Node>, me: SubscriberId, inbox: Arc<Inbox>, load: Arc<AtomicUsize>) -> Rc<Self> {
        let clock = Clock::start();
        let timer_filed = Rc::new(Notify::new());
        Rc::new_cyclic(|shard| {
            let state = State {
                node: Arc::clone(&node),
                me,
                clock,
                shard: Weak::clone(shard),
                outgoing: Outgoing::new(Sessions::new(load), node.outbox_limits, clock, Arc::clone(&inbox)),
                rooms: Rooms::default(),
                posts: Posts::default(),
                wheel: Wheel::new(),
                timer_filed: Rc::clone(&timer_filed),
                taken: Taken::default(),
            };
            let (requests, lookups) = (Rc::default(), Rc::default());
            Self { node, me, inbox, clock, timer_filed, requests, lookups, state: RefCell::new(state) }
        })
    }

    /// The shard's loop, which never ends: takes the inbox, delivers, writes, and lets other tasks run in between.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            while self.state.borrow().outgoing.is_idle() && self.inbox.is_empty() {
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

    /// Does what waits in the inbox; `true` if a room had messages for its members.
    fn take_inbox(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut taken = std::mem::take(&mut state.taken);
        self.inbox.take(&mut taken);
        self.observe_lag(&taken.items);
        taken.published.drain(..).for_each(|published| state.on_published(published));
        let delivered = state.take_items(taken.items.drain(..));
        state.taken = taken;
        delivered
    }

    /// Writes until nothing waits or the turn is over.
    fn flush_some(&self) {
        let state = &mut *self.state.borrow_mut();
        let began = Instant::now();
        let mut bytes = 0;
        for writes in 1..=WRITES_MAX {
            let Some(index) = state.outgoing.next_to_flush(writes % BULK_EVERY == 0) else { break };
            bytes += state.outgoing.flush(index);
            if writes % CLOCK_EVERY == 0 && began.elapsed() > TIME_MAX {
                break;
            }
        }
        // Each socket that has refused bytes is waited for, and its oldest frame may grow too old.
        for session in std::mem::take(&mut state.outgoing.refused) {
            state.watch_stale(session);
            state.spawn(|shard| shard.wait_until_writable(session));
        }
        self.node.metrics.delivered_bytes.inc_by(bytes as u64);
    }

    async fn wait_until_writable(self: Rc<Self>, session: SessionRef) {
        let socket = self.state.borrow_mut().outgoing.sessions.get(session).map(|conn| Rc::clone(&conn.socket));
        let Some(socket) = socket else { return };
        // If the socket has failed instead, the next write finds that out.
        let _ = socket.writable().await;
        self.state.borrow_mut().outgoing.on_writable(session);
    }

    /// Measures how old the newest message is: one look at the clock for all that was taken.
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

    /// How many HTTP requests are being answered.
    fn requests(&self) -> usize {
        Rc::strong_count(&self.requests) - 1
    }
}

impl State {
    /// Delivers what stands between two control messages in one pass. A control message may bring a join or a leave, so
    /// it is handled between passes: what was delivered before it is for those who were members before it.
    fn take_items(&mut self, mut items: impl Iterator<Item = Item>) -> bool {
        let mut has_delivered = false;
        loop {
            let (control, delivered) = self.pass(|pass| {
                for item in items.by_ref() {
                    match item {
                        Item::Deliver(delivery) => pass.deliver(delivery),
                        Item::Behind(room) => pass.on_behind(&room),
                        Item::Control(message) => return Some(message),
                    }
                }
                None
            });
            has_delivered |= delivered;
            let Some(message) = control else { return has_delivered };
            self.on_control(message);
        }
    }

    /// Runs one pass: `deliver` fills batches, then all batches are handed out, then what the pass left to do is done.
    /// Also returns whether a room had messages for its members.
    fn pass<T>(&mut self, deliver: impl FnOnce(&mut Pass<'_>) -> T) -> (T, bool) {
        let (result, left) = Pass::run(&mut self.rooms, &mut self.outgoing, deliver);
        // Counted once per pass, because the threads of all shards count on the same words.
        for (counter, delivered) in self.node.metrics.delivered.iter().zip(left.delivered).filter(|(_, sum)| *sum > 0) {
            counter.inc_by(delivered);
        }
        for ended in left.ended {
            self.depart(ended);
        }
        for (room, since) in left.catch_ups {
            self.start_catch_up(room, since);
        }
        (result, left.has_batches)
    }

    /// Starts a task of this shard.
    fn spawn<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<Shard>) -> F) {
        // The shard owns its state, so it is there while a step runs.
        if let Some(shard) = self.shard.upgrade() {
            drop(tokio::task::spawn_local(task(shard)));
        }
    }
}
