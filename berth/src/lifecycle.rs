//! Signals: the first SIGTERM or SIGINT stops gently, the second at once; SIGHUP reads the policy again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell shows for a process that SIGTERM ended: 128 + 15.
const SECOND_SIGNAL: i32 = 143;

/// The signals this process listens to.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Stop.
    Stop,
    /// Read again what can be read again.
    Reload,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// During the stop: a second signal does not wait.
    pub async fn exit_at_once(mut self) {
        while self.next().await == Asked::Reload {}
        tracing::warn!("stopped by a second signal, before everything was closed");
        std::process::exit(SECOND_SIGNAL);
    }
}
