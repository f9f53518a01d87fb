//! What is due by time: pings, sessions that stay silent, outboxes that do not drain, rooms that stay empty. One
//! sleeping task per shard, which sleeps for good while nothing is filed.

use super::{
    Shard, State,
    conn::{Phase, SessionRef, Timer},
    flush::shut,
    streams::HEARTBEAT_MS,
    wheel::TICK_MS,
};
use crate::{
    protocol::{FrameShape, close::CloseReason, control_frame},
    session::{
        Frames,
        keepalive::{Due, PONG_MS},
    },
};
use std::{collections::VecDeque, net::Shutdown, rc::Rc, time::Duration};

impl State {
    fn has_no_timers(&self) -> bool {
        self.wheel.is_empty() && self.lingering.iter().all(VecDeque::is_empty)
    }
}

impl Shard {
    /// Turns the wheel for ever.
    pub(crate) async fn run_timers(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(u64::from(TICK_MS)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut due = Vec::new();
        loop {
            while self.has_no_timers() {
                self.timers.notified().await;
                ticks.reset();
            }
            ticks.tick().await;
            let state = &mut *self.state.borrow_mut();
            state.wheel.turn(&mut due);
            for timer in due.drain(..) {
                self.on_timer(state, timer);
            }
            self.let_go(state);
            self.evict_fullest(state);
            self.node.metrics.outbox_bytes.add(state.outbox_bytes as i64 - state.outbox_told);
            state.outbox_told = state.outbox_bytes as i64;
        }
    }

    fn has_no_timers(&self) -> bool {
        self.state.borrow().has_no_timers()
    }

    pub(super) fn start_wheel_entry(&self, state: &mut State, timer: Timer, after_ms: u32) {
        self.wake_timers(state);
        state.wheel.file(timer, after_ms);
    }

    /// Call before something is filed: the task sleeps only while nothing is.
    pub(super) fn wake_timers(&self, state: &State) {
        if state.has_no_timers() {
            self.timers.notify_one();
        }
    }

    /// This session's interval: the configured one, spread by a tenth so that no storm of connects comes back as a
    /// storm of pings.
    pub(super) fn ping_ms(&self, index: u32, shape: FrameShape) -> u32 {
        let interval = self.node.limits.ping_interval.as_millis() as u32;
        let interval = if shape == FrameShape::WebSocket { interval } else { interval.min(HEARTBEAT_MS) };
        let spread = (interval / 10).max(1);
        interval - index.wrapping_mul(2_654_435_761) % spread // Knuth's multiplicative hash
    }

    fn on_timer(&self, state: &mut State, timer: Timer) {
        let now_ms = self.now_ms();
        match timer {
            Timer::Keepalive(who) => {
                let Some(conn) = state.sessions.open(who) else { return };
                if conn.stream.is_some() {
                    return self.beat(state, who);
                }
                let ping_ms = self.ping_ms(who.index, conn.shape);
                match conn.live.check(now_ms, ping_ms) {
                    Due::Later(ms) => self.start_wheel_entry(state, timer, ms),
                    Due::Ping => {
                        self.queue(state, who.index, Frames { bytes: control_frame::ping(), count: 1 });
                        self.start_wheel_entry(state, timer, PONG_MS);
                    }
                    Due::Close(reason) => self.end(state, who, reason, None),
                }
            }
            Timer::Stale(who) => self.check_stale(state, who, now_ms),
            Timer::Post(first) => self.give_up_post(state, first),
            Timer::Closed(who) => {
                if let Some(conn) = state.sessions.get(who).filter(|conn| conn.phase == Phase::Closing) {
                    shut(conn, Shutdown::Both); // the reader sees the end and removes the session
                }
            }
        }
    }

    /// Looks at a session whose socket is full again when its outbox may have grown too old; one entry per session.
    pub(super) fn watch_stale(&self, state: &mut State, who: SessionRef) {
        let Some(conn) = state.sessions.open(who) else { return };
        if !std::mem::replace(&mut conn.stale_filed, true) {
            self.start_wheel_entry(state, Timer::Stale(who), self.node.outbox_limits.age_ms + TICK_MS);
        }
    }

    fn check_stale(&self, state: &mut State, who: SessionRef, now_ms: u32) {
        let Some(conn) = state.sessions.open(who) else { return };
        conn.stale_filed = false;
        if conn.blocked && conn.outbox.is_stale(now_ms, &self.node.outbox_limits) {
            self.end(state, who, CloseReason::TooSlow, None);
        } else if conn.blocked {
            self.watch_stale(state, who);
        }
    }
}
