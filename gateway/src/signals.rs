//! The signals that this process takes from its first moment on: while it waits for Redis, while it serves, and while it
//! drains. Called by `app`.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT end the process, the second of them at once. SIGQUIT (nginx's word for a graceful end) and SIGHUP
/// (the terminal is gone) begin a drain too. SIGUSR1 and SIGUSR2, which other servers use to reopen their logs, change
/// nothing.
pub(crate) struct ProcessSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    _ignored: [Signal; 2],
}

/// What begins a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainCause {
    /// SIGTERM or SIGINT.
    Termination,
    /// Another signal, or `POST /drain`. Whatever supervises the process sends SIGTERM after it, as Kubernetes does after
    /// its `preStop`.
    Request,
}

impl ProcessSignals {
    /// The error: the operating system refuses it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            _ignored: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// Waits for SIGTERM or SIGINT.
    pub(crate) async fn termination(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {} _ = self.interrupt.recv() => {} }
    }

    /// Waits for a signal that begins a drain.
    pub(crate) async fn drain(&mut self) -> DrainCause {
        tokio::select! {
            _ = self.terminate.recv() => DrainCause::Termination,
            _ = self.interrupt.recv() => DrainCause::Termination,
            _ = self.quit.recv() => DrainCause::Request,
            _ = self.hangup.recv() => DrainCause::Request,
        }
    }
}
