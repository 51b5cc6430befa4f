//! Signals: the first SIGTERM or SIGINT stops gently, the second at once, and so does the first while the process starts;
//! SIGHUP reads the policy again.

use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// What a shell shows for a process that SIGTERM ended: 128 + 15.
const ENDED_BY_A_SIGNAL: i32 = 143;

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

    /// Does what may take long (a replay) before anything serves. A signal to stop ends the process meanwhile: there is nobody
    /// to send away, and data that is being opened is as safe as in a crash. Signals are heard on `runtime`, which may be
    /// gone once `start` has failed.
    ///
    /// # Errors
    /// What `start` says.
    pub fn during<T, E>(
        mut self,
        runtime: &Handle,
        start: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Self), E> {
        let (started, mut done) = oneshot::channel::<()>();
        let listening = runtime.spawn(async move {
            tokio::select! {
                biased;
                // Once the start is done, a signal is for the gentle stop.
                _ = &mut done => self,
                () = self.stop() => {
                    tracing::info!("stopped by a signal during the start");
                    std::process::exit(ENDED_BY_A_SIGNAL)
                }
            }
        });
        let begun = start()?;
        drop(started);
        let signals = runtime.block_on(listening).expect("nobody ends that task, and it does not panic");
        Ok((begun, signals))
    }

    /// During the stop: a second signal does not wait.
    pub async fn exit_at_once(mut self) {
        self.stop().await;
        tracing::warn!("stopped by a second signal, before everything was closed");
        std::process::exit(ENDED_BY_A_SIGNAL);
    }

    /// Until one asks to stop.
    async fn stop(&mut self) {
        while self.next().await == Asked::Reload {}
    }
}
