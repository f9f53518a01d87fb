//! `Supervisor`: judges one connection, as a state machine without I/O. Inputs and the time go in, the next step comes
//! out; the task in `keep.rs` does the step.
//!
//! ```text
//! down -> connecting -> syncing -> up <-> suspect
//!   ^---------- lost, refused, or a probe unanswered for DEAD_AFTER -----------|
//! ```
//! A closed connection is down at once. A stalled one is down at most PROBE_EVERY + DEAD_AFTER = 2.5 s after it
//! stalled: a probe is due within 1 s, and its reply may take 1.5 s.

use std::time::{Duration, Instant};

/// From the reply to a probe until the next probe.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A probe without a reply for this long makes the connection suspect.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// A probe without a reply for this long ends the connection.
pub(crate) const DEAD_AFTER: Duration = Duration::from_millis(1500);
/// After a deadline, time for a reply that has arrived but was not read yet, because this process had no processor.
pub(crate) const GRACE: Duration = Duration::from_millis(100);
/// How long connecting and its handshake may take.
pub(crate) const CONNECT_MAX: Duration = Duration::from_millis(1500);
/// The time between a failed attempt and the next one: at least, at most in a small cluster, and at most in a large one.
/// Members learn within 2 s after Redis is back what they have missed; the rest of the 2 s is for subscribing and for
/// comparing heads.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_SMALL: Duration = Duration::from_millis(150);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(1);
/// Nodes of a small cluster. In a larger one the longest wait grows with the nodes, so that Redis gets no more attempts.
const SMALL: u32 = 8;
/// A connection that was up for this long was in use: the next attempt follows at once. A shorter one counts as a failed
/// attempt.
const IN_USE: Duration = Duration::from_millis(100);
/// Nodes that lost their connections together spread their first attempts over this time for each node.
const SPREAD: Duration = Duration::from_millis(1);

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// There is no connection. The next attempt begins when its time has come.
    Down,
    /// An attempt is under way.
    Connecting,
    /// Connected. The driver restores what the connection is for.
    Syncing,
    /// In use.
    Up,
    /// Connected, but Redis replies late: nothing new is sent.
    Suspect,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// The attempt succeeded.
    Connected,
    /// The attempt failed.
    Refused,
    /// The driver has restored everything.
    Synced,
    /// The probe's reply came.
    Answered,
    /// A command's reply did not come in time.
    Late,
    /// The connection ended, or cannot be used any more.
    Lost,
    /// Another server is the master now: the connection, or the next attempt, would lead to the wrong one.
    Moved,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionAction {
    /// Connect.
    Connect,
    /// Ask the server whether it is alive.
    Probe,
    /// Drop the connection.
    Drop,
    /// Do nothing until this time, unless an input comes.
    Wait(Instant),
}

/// What spreads the attempts of a cluster's nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReconnectSpread {
    /// How many nodes use this Redis.
    pub(crate) nodes: u32,
    /// A fresh random number from 0 to 1.
    pub(crate) jitter: f64,
}

/// Decides when to connect, to probe and to drop one connection.
#[derive(Debug)]
pub(crate) struct Supervisor {
    state: ConnectionState,
    /// Failed attempts since the last connection that was in use.
    failures: u32,
    /// Since when the connection has been up.
    up_since: Option<Instant>,
    /// Down: the next attempt. Connecting: the end of the attempt. Else: the next probe.
    due: Instant,
    /// When the unanswered probe was sent.
    probed: Option<Instant>,
    drop_first: bool,
}

impl Supervisor {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: ConnectionState::Down, failures: 0, up_since: None, due: now, probed: None, drop_first: false }
    }

    pub(crate) fn state(&self) -> ConnectionState {
        self.state
    }

    /// Takes what happened.
    pub(crate) fn on(&mut self, input: Input, now: Instant, spread: ReconnectSpread) {
        match (self.state, input) {
            (ConnectionState::Connecting, Input::Connected) => {
                self.state = ConnectionState::Syncing;
                self.probed = None;
                self.due = now + PROBE_EVERY;
            }
            (ConnectionState::Syncing, Input::Synced) => {
                self.state = ConnectionState::Up;
                self.up_since = Some(now);
            }
            (ConnectionState::Syncing | ConnectionState::Up | ConnectionState::Suspect, Input::Answered) => {
                self.answered(now);
            }
            (ConnectionState::Up, Input::Late) => {
                self.state = ConnectionState::Suspect;
                self.due = now;
            }
            (ConnectionState::Down, Input::Moved) => {
                self.due = self.due.min(now + RETRY_MIN);
                self.failures = 0;
            }
            (ConnectionState::Down, _) => {}
            (ConnectionState::Syncing | ConnectionState::Up | ConnectionState::Suspect, Input::Moved) => {
                self.fall(now, ReconnectSpread { jitter: 0.0, ..spread });
                self.failures = 0;
            }
            (_, Input::Lost | Input::Refused) => self.fall(now, spread),
            _ => {}
        }
    }

    /// Returns what to do now. Called again after that is done, and after every input.
    pub(crate) fn step(&mut self, now: Instant, spread: ReconnectSpread) -> ConnectionAction {
        if std::mem::take(&mut self.drop_first) {
            return ConnectionAction::Drop;
        }
        match (self.state, self.probed) {
            (ConnectionState::Down, _) if now >= self.due => {
                self.state = ConnectionState::Connecting;
                self.due = now + CONNECT_MAX;
                ConnectionAction::Connect
            }
            (ConnectionState::Connecting, _) if now >= self.due => self.end(now, spread),
            (ConnectionState::Down | ConnectionState::Connecting, _) => ConnectionAction::Wait(self.due),
            (_, None) if now >= self.due => {
                self.probed = Some(now);
                ConnectionAction::Probe
            }
            (_, None) => ConnectionAction::Wait(self.due),
            (_, Some(probed)) if now >= probed + DEAD_AFTER => self.end(now, spread),
            (ConnectionState::Up, Some(probed)) if now < probed + SUSPECT_AFTER => {
                ConnectionAction::Wait(probed + SUSPECT_AFTER)
            }
            (state, Some(probed)) => {
                if state == ConnectionState::Up {
                    self.state = ConnectionState::Suspect;
                }
                ConnectionAction::Wait(probed + DEAD_AFTER)
            }
        }
    }

    fn answered(&mut self, now: Instant) {
        self.probed = None;
        self.due = now + PROBE_EVERY;
        if self.state != ConnectionState::Syncing {
            self.state = ConnectionState::Up;
        }
    }

    /// A deadline has passed: the connection is dropped by this very step.
    fn end(&mut self, now: Instant, spread: ReconnectSpread) -> ConnectionAction {
        self.fall(now, spread);
        self.drop_first = false;
        ConnectionAction::Drop
    }

    /// Goes down. A connection that was in use is replaced at once. After a failed attempt the next one comes after a
    /// random time, whose upper end doubles with each failure, so that nodes which lost their connections together do
    /// not return together.
    fn fall(&mut self, now: Instant, spread: ReconnectSpread) {
        let was_in_use = self.up_since.take().is_some_and(|since| now.duration_since(since) >= IN_USE);
        let (least, longest) = if was_in_use {
            self.failures = 0;
            (Duration::ZERO, SPREAD.saturating_mul(spread.nodes.saturating_sub(1)).min(RETRY_MAX))
        } else {
            let most = RETRY_SMALL.saturating_mul(spread.nodes.div_ceil(SMALL).max(1)).min(RETRY_MAX);
            let longest = (RETRY_MIN * 2).saturating_mul(1 << self.failures.min(10)).min(most);
            self.failures = self.failures.saturating_add(1);
            (RETRY_MIN, longest)
        };
        self.state = ConnectionState::Down;
        self.probed = None;
        self.due = now + least + (longest - least).mul_f64(spread.jitter.clamp(0.0, 1.0));
        self.drop_first = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALONE: ReconnectSpread = ReconnectSpread { nodes: 1, jitter: 0.5 };

    fn up(now: Instant) -> Supervisor {
        let mut supervisor = Supervisor::new(now);
        assert_eq!(supervisor.step(now, ALONE), ConnectionAction::Connect);
        supervisor.on(Input::Connected, now, ALONE);
        supervisor.on(Input::Synced, now, ALONE);
        assert_eq!(supervisor.state(), ConnectionState::Up);
        supervisor
    }

    #[test]
    fn a_connection_that_was_in_use_is_replaced_at_once_however_often_it_is_lost() {
        let mut now = Instant::now();
        let mut supervisor = up(now);
        for _ in 0..5 {
            now += Duration::from_secs(1);
            supervisor.on(Input::Lost, now, ALONE);
            assert_eq!(supervisor.state(), ConnectionState::Down);
            assert_eq!(supervisor.step(now, ALONE), ConnectionAction::Drop);
            assert_eq!(supervisor.step(now, ALONE), ConnectionAction::Connect);
            supervisor.on(Input::Connected, now, ALONE);
            supervisor.on(Input::Synced, now, ALONE);
        }
        // In a large cluster the nodes do not all come in one moment.
        now += Duration::from_secs(1);
        let spread = ReconnectSpread { nodes: 101, jitter: 1.0 };
        supervisor.on(Input::Lost, now, spread);
        assert_eq!(supervisor.step(now, spread), ConnectionAction::Drop);
        assert_eq!(supervisor.step(now, spread), ConnectionAction::Wait(now + Duration::from_millis(100)));
    }

    /// The waits between ten failed attempts, with the longest jitter.
    fn waits(nodes: u32) -> Vec<u128> {
        let (mut now, spread) = (Instant::now(), ReconnectSpread { nodes, jitter: 1.0 });
        let mut supervisor = Supervisor::new(now);
        let attempt = |_| {
            assert_eq!(supervisor.step(now, spread), ConnectionAction::Connect);
            supervisor.on(Input::Refused, now, spread);
            assert_eq!(supervisor.step(now, spread), ConnectionAction::Drop);
            let ConnectionAction::Wait(until) = supervisor.step(now, spread) else {
                panic!("an attempt follows at once")
            };
            let wait = until - now;
            now = until;
            wait.as_millis()
        };
        (0..10).map(attempt).collect()
    }

    #[test]
    fn attempts_are_close_in_a_small_cluster_and_spread_in_a_large_one() {
        assert_eq!(waits(1), [40, 80, 150, 150, 150, 150, 150, 150, 150, 150]);
        assert_eq!(waits(20), [40, 80, 160, 320, 450, 450, 450, 450, 450, 450]);
        assert_eq!(waits(1000)[7..], [1000, 1000, 1000]);
    }

    #[test]
    fn a_connection_that_is_lost_as_soon_as_it_is_up_counts_as_a_failed_attempt() {
        let now = Instant::now();
        let mut supervisor = up(now);
        supervisor.on(Input::Lost, now + Duration::from_millis(50), ALONE);
        assert_eq!(supervisor.step(now + Duration::from_millis(50), ALONE), ConnectionAction::Drop);
        assert!(matches!(supervisor.step(now + Duration::from_millis(50), ALONE), ConnectionAction::Wait(_)));
    }

    #[test]
    fn a_late_reply_makes_a_connection_suspect_and_a_missing_one_ends_it() {
        let now = Instant::now();
        let mut supervisor = up(now);
        let probed = now + PROBE_EVERY;
        assert_eq!(supervisor.step(probed, ALONE), ConnectionAction::Probe);
        assert_eq!(supervisor.step(probed, ALONE), ConnectionAction::Wait(probed + SUSPECT_AFTER));
        assert_eq!(supervisor.step(probed + SUSPECT_AFTER, ALONE), ConnectionAction::Wait(probed + DEAD_AFTER));
        assert_eq!(supervisor.state(), ConnectionState::Suspect);
        supervisor.on(Input::Answered, probed + SUSPECT_AFTER, ALONE);
        assert_eq!(supervisor.state(), ConnectionState::Up);
        let probed = probed + SUSPECT_AFTER + PROBE_EVERY;
        assert_eq!(supervisor.step(probed, ALONE), ConnectionAction::Probe);
        assert_eq!(supervisor.step(probed + DEAD_AFTER, ALONE), ConnectionAction::Drop);
        assert_eq!(supervisor.state(), ConnectionState::Down);
    }

    #[test]
    fn a_late_command_brings_the_probe_forward() {
        let now = Instant::now();
        let mut supervisor = up(now);
        supervisor.on(Input::Late, now, ALONE);
        assert_eq!(supervisor.state(), ConnectionState::Suspect);
        assert_eq!(supervisor.step(now, ALONE), ConnectionAction::Probe);
    }

    #[derive(Debug, Clone, Copy)]
    enum Stimulus {
        Pass(u64),
        Happens(Input),
    }

    fn has_connection(state: ConnectionState) -> bool {
        matches!(state, ConnectionState::Syncing | ConnectionState::Up | ConnectionState::Suspect)
    }

    fn stimulus() -> impl Strategy<Value = Stimulus> {
        let inputs =
            [Input::Connected, Input::Refused, Input::Synced, Input::Answered, Input::Late, Input::Lost, Input::Moved];
        prop_oneof![
            (0u64..3000).prop_map(Stimulus::Pass),
            proptest::sample::select(inputs.to_vec()).prop_map(Stimulus::Happens)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever happens in whatever order: steps fit the state of the connection, a silent connection is down in
        /// time, attempts are neither too close nor too far apart, and no step waits for a time that has passed.
        #[test]
        fn steps_fit_the_connection_after_any_sequence_of_inputs(
            stimuli in proptest::collection::vec(stimulus(), 0..200),
            jitter in 0.0f64..=1.0,
            nodes in 1u32..200,
        ) {
            let spread = ReconnectSpread { nodes, jitter };
            let start = Instant::now();
            let (mut now, mut last_reply) = (start, start);
            let mut supervisor = Supervisor::new(now);
            let (mut connection, mut ended): (bool, Option<Instant>) = (false, None);
            for stimulus in stimuli {
                match stimulus {
                    Stimulus::Pass(ms) => {
                        // Time passes no further than the step allows, as in the task.
                        let target = now + Duration::from_millis(ms);
                        loop {
                            let was = supervisor.state();
                            match supervisor.step(now, spread) {
                                ConnectionAction::Connect => {
                                    prop_assert!(!connection && was == ConnectionState::Down);
                                    if let Some(ended) = ended {
                                        prop_assert!(now <= ended + RETRY_MAX);
                                    }
                                    last_reply = now;
                                }
                                ConnectionAction::Probe => prop_assert!(connection),
                                ConnectionAction::Drop => {
                                    connection = false;
                                    ended = Some(now);
                                    prop_assert_eq!(supervisor.state(), ConnectionState::Down);
                                }
                                ConnectionAction::Wait(until) => {
                                    prop_assert!(until > now, "waits for a time that has passed");
                                    if until > target { break; }
                                    now = until;
                                }
                            }
                            if connection {
                                prop_assert!(now <= last_reply + PROBE_EVERY + DEAD_AFTER, "silent for too long");
                            }
                        }
                        now = target;
                    }
                    Stimulus::Happens(input) => {
                        let before = supervisor.state();
                        supervisor.on(input, now, spread);
                        match (before, input) {
                            (ConnectionState::Connecting, Input::Connected) => { connection = true; last_reply = now; }
                            (before, Input::Answered) if has_connection(before) => last_reply = now,
                            _ => {}
                        }
                        if before != ConnectionState::Down && supervisor.state() == ConnectionState::Down {
                            prop_assert_eq!(supervisor.step(now, spread), ConnectionAction::Drop);
                            connection = false;
                            ended = Some(now);
                        }
                    }
                }
                prop_assert_eq!(connection, has_connection(supervisor.state()));
            }
        }
    }
}
