//! A shard: one thread with its sessions, their sockets, and the rooms that they are in. A session stays on its shard
//! for life. Nothing here is locked; other threads reach a shard through its inbox alone.
//!
//! Called by `transport` (sockets, and what clients send) and `app` (the loop).
//!
//! # Three types, and what their methods may do
//!
//! - [`Shard`] is the handle, shared by the tasks of the thread. Transports **call** its plain methods: each borrows
//!   the state, takes one step and returns. Its `async` methods are **tasks**: the loop, the timers, and everything
//!   that waits for the broker, a socket or a time. A task borrows the state for one step at a time, never while it
//!   waits.
//! - `State` is what the shard owns. Its methods are **steps**: they take `&mut self`, run to their end and wait for
//!   nothing. For work that has to wait, they start a task.
//! - `Pass` delivers messages. `State::pass` lends it the rooms and the outboxes; it keeps them until every room's
//!   batch has been handed out. Joins, leaves and commands are steps of `State`, so none of them can come between a
//!   message and the members it was encoded for.
//!
//! The parts of `State` (`Outgoing`, `Rooms`, `Posts`) know neither `State` nor each other.
//!
//! | file | |
//! |---|---|
//! | `conn` | data: the table of sessions |
//! | `outgoing` | data: the sessions' outboxes, and who is written to next |
//! | `rooms` | data: the table of rooms |
//! | `room` | data: one room |
//! | `members` | data: a room's member lists |
//! | `feed` | data: a room's messages in sequence, without holes |
//! | `batch` | data: the frames of one room in one pass |
//! | `fanout` | the hot path: `Pass` encodes once and queues for many |
//! | `sessions` | a session's life, from open to removed |
//! | `timers` | pings and deadlines |
//! | `drain` | the planned end of all sessions |
//! | `join` | the first half of a join; leaving |
//! | `admit` | the second half of a join |
//! | `catch_up` | holes filled from history |
//! | `commands` | what clients ask by commands |
//! | `questions` | the commands `presence` and `history`, answered one after the other |
//! | `polls` | rooms that polls watch |
//! | `control` | control messages |
//! | `posts` | data: the table of posted commands |
//! | `posted` | the way of posted commands to the session's shard, and of the replies back |
//! | `reply_to` | who sent a command, and where its reply goes |
//! | `clock` | the shard's time, and the timer wheel |
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
mod member_list;
mod members;
mod outgoing;
mod polls;
mod posted;
mod posts;
mod presence;
mod questions;
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
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Writes in one turn of the loop. 64 small writes take about 0.8 ms, which is the longest time that a member of a
/// small room waits behind a large room. The loop has to yield by itself, because `try_write` does not count against
/// tokio's budget for a task.
const WRITES_MAX: usize = 64;
/// How long a turn of the loop may write.
const TIME_MAX: Duration = Duration::from_micros(500);
/// Small writes between two readings of the clock, and the bytes of one after which it is read in any case.
const CLOCK_EVERY: usize = 16;
const LARGE_WRITE: usize = 4096;
/// One write of this many goes to the bulk queue, so that many small rooms cannot starve a large one.
const BULK_EVERY: usize = 8;

/// The handle to a shard, for transports and the shard's own tasks.
pub(crate) struct Shard {
    pub(crate) node: Arc<Node>,
    me: SubscriberId,
    inbox: Arc<Inbox>,
    clock: Clock,
    /// Wakes the timer task, which sleeps while no timer is filed and no room lingers.
    timer_filed: Rc<Notify>,
    /// Its strong count less one is the number of HTTP requests that are being answered; a drain waits for them.
    pub(crate) requests: Rc<()>,
    /// Its strong count less one is the number of posts that wait because no node is subscribed under their target's
    /// id; `posted` limits it.
    lookups: Rc<()>,
    /// Since when the backplane, or a part of it, has been away.
    away_since: Cell<Option<Instant>>,
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
    /// Empty between two turns of the loop. Kept so that each turn reuses its memory.
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
            let (away_since, state) = (Cell::new(None), RefCell::new(state));
            Self { node, me, inbox, clock, timer_filed, requests, lookups, away_since, state }
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

    /// Handles a portion of the inbox; `true` if a room had messages for its members.
    fn take_inbox(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut taken = std::mem::take(&mut state.taken);
        self.inbox.take(&mut taken);
        self.observe_lag(&taken.items);
        // Replies to publishers go first, so that they do not wait for the fan-out.
        taken.published.drain(..).for_each(|published| state.on_published(published));
        let delivered = state.take_items(taken.items.drain(..));
        state.taken = taken;
        delivered
    }

    /// Writes to sockets until nothing waits or the turn is over.
    fn flush_some(&self) {
        let state = &mut *self.state.borrow_mut();
        let began = Instant::now();
        let mut bytes = 0;
        for writes in 1..=WRITES_MAX {
            let Some(index) = state.outgoing.next_to_flush(writes % BULK_EVERY == 0) else { break };
            let written = state.outgoing.flush(index);
            bytes += written;
            let is_clock_due = writes % CLOCK_EVERY == 0 || written > LARGE_WRITE;
            if is_clock_due && began.elapsed() > TIME_MAX {
                break;
            }
        }
        // A task waits for each socket that has refused bytes, and a timer checks the age of its oldest frame.
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

    /// Measures how old the newest message is: one reading of the clock for all that was taken.
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
    /// Delivers the events between two control messages in one pass. A control message may cause a join or a leave, so
    /// it is handled between passes: messages before it go to those who were members before it. Returns whether a room
    /// had messages for its members.
    fn take_items(&mut self, mut items: impl Iterator<Item = Item>) -> bool {
        let mut has_delivered = false;
        loop {
            let (control, delivered) = self.pass(|pass| {
                for item in items.by_ref() {
                    match item {
                        Item::Deliver(delivery) => pass.deliver(delivery),
                        Item::Behind(room) => pass.on_behind(&room),
                        Item::PresenceBehind(room, version) => pass.on_presence_behind(&room, version),
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

    /// Runs one pass: `deliver` fills batches, then all batches are handed out, then slow sessions leave their rooms
    /// and catch-ups are started. Also returns whether a room had messages for its members.
    fn pass<T>(&mut self, deliver: impl FnOnce(&mut Pass<'_>) -> T) -> (T, bool) {
        let (returned, result) = Pass::run(&mut self.rooms, &mut self.outgoing, deliver);
        // All shards share these atomic counters, so this adds once per pass, not once per message.
        let delivered = self.node.metrics.delivered.iter().zip(result.delivered);
        for (counter, messages) in delivered.filter(|(_, messages)| *messages > 0) {
            counter.inc_by(messages);
        }
        for ended in result.ended {
            self.depart(ended);
        }
        for room in result.relists {
            self.relist(room);
        }
        for (room, since) in result.catch_ups {
            self.start_catch_up(room, since);
        }
        (returned, result.has_batches)
    }

    /// Starts a task of this shard.
    fn spawn<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<Shard>) -> F) {
        // The shard owns this state, so the reference is valid while a step runs.
        if let Some(shard) = self.shard.upgrade() {
            drop(tokio::task::spawn_local(task(shard)));
        }
    }
}

#[cfg(test)]
mod model_tests;
