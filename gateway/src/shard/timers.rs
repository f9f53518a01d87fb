//! What is due by time: pings and heartbeats, outboxes that do not drain, sockets to be cut, posts to be answered,
//! rooms to be unsubscribed. One task per shard, which sleeps while nothing is filed.

use super::{
    SessionRef, Shard, State,
    clock::TICK_MS,
    conn::{Phase, Timer},
    sessions::HEARTBEAT_MS,
};
use crate::{
    protocol::{FrameShape, close::CloseReason, control_frame},
    session::keepalive::{Due, PONG_MS},
};
use std::{net::Shutdown, rc::Rc, time::Duration};

impl Shard {
    /// Once per tick: turns the wheel, and checks lingering rooms and the budget of outboxes. Never ends.
    pub(crate) async fn run_timers(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(u64::from(TICK_MS)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut due = Vec::new();
        loop {
            while self.state.borrow().has_no_timers() {
                self.timer_filed.notified().await;
                ticks.reset();
            }
            ticks.tick().await;
            self.state.borrow_mut().tick(&mut due);
        }
    }
}

impl State {
    fn tick(&mut self, due: &mut Vec<Timer>) {
        self.wheel.turn(due);
        for timer in due.drain(..) {
            self.on_timer(timer);
        }
        self.unfollow_expired();
        for ended in self.outgoing.evict(self.node.shard_outbox_bytes - self.node.shard_answer_bytes()) {
            self.depart(ended);
        }
        self.node.metrics.outbox_bytes.add(self.outgoing.report_bytes());
    }

    fn has_no_timers(&self) -> bool {
        self.wheel.is_empty() && !self.rooms.has_lingering()
    }

    /// Files `timer`, which is handled after `after_ms`.
    pub(super) fn file(&mut self, timer: Timer, after_ms: u32) {
        self.wake_timers();
        self.wheel.file(timer, after_ms);
    }

    /// Wakes the timers' task if it sleeps; call this before a timer or a lingering room is filed.
    pub(super) fn wake_timers(&self) {
        if self.has_no_timers() {
            self.timer_filed.notify_one();
        }
    }

    /// Milliseconds between this session's pings: the configured interval, up to a tenth shorter by the session's
    /// index, so that clients which connected at the same time are not pinged at the same time.
    pub(super) fn ping_ms(&self, index: u32, shape: FrameShape) -> u32 {
        let interval = self.node.limits.ping_interval.as_millis() as u32;
        let interval = if shape == FrameShape::WebSocket { interval } else { interval.min(HEARTBEAT_MS) };
        let spread = (interval / 10).max(1);
        interval - index.wrapping_mul(2_654_435_761) % spread // Knuth's multiplicative hash
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Keepalive(session) => self.check_keepalive(session),
            Timer::Stale(session) => self.check_stale(session),
            Timer::Post(first) => self.give_up_post(first),
            Timer::Closed(session) => {
                let conn = self.outgoing.sessions.get(session).filter(|conn| conn.phase == Phase::Closing);
                if let Some(conn) = conn {
                    conn.shut(Shutdown::Both); // the reader sees the end and removes the session
                }
            }
        }
    }

    fn check_keepalive(&mut self, session: SessionRef) {
        let now_ms = self.clock.now_ms();
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        if conn.stream.is_some() {
            return self.beat(session); // its client cannot answer a ping
        }
        let shape = conn.shape;
        let ping_ms = self.ping_ms(session.index, shape);
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        match conn.keepalive.check(now_ms, ping_ms) {
            Due::Later(ms) => self.file(Timer::Keepalive(session), ms),
            Due::Ping => {
                self.queue(session.index, control_frame::ping());
                self.file(Timer::Keepalive(session), PONG_MS);
            }
            Due::Close => self.end(session, CloseReason::Silent, None),
        }
    }

    /// Files a check of the session for the time when its outbox may have become too old. The wheel holds one such
    /// timer per session.
    pub(super) fn watch_stale(&mut self, session: SessionRef) {
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        if !std::mem::replace(&mut conn.stale_filed, true) {
            self.file(Timer::Stale(session), self.node.outbox_limits.age_ms + TICK_MS);
        }
    }

    fn check_stale(&mut self, session: SessionRef) {
        let now_ms = self.clock.now_ms();
        let Some(conn) = self.outgoing.sessions.get_open(session) else { return };
        conn.stale_filed = false;
        if conn.blocked && conn.outbox.is_stale(now_ms, &self.node.outbox_limits) {
            self.end(session, CloseReason::TooSlow, None);
        } else if conn.blocked {
            self.watch_stale(session);
        }
    }
}
