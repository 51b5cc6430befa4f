//! Who says when a stage begins: the process itself when it is alone, or the first of several.

use std::{
    io::{BufRead, IsTerminal, Write},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mio::Waker;
use serde::{Deserialize, Serialize};

use super::{clock::Clock, pace::Nanos, tally::Tally, watch::Watch};

/// Between two progress lines: what an eye can follow.
const PROGRESS: Duration = Duration::from_millis(250);

/// Tells the loop when to go on, and when to stop.
pub trait Conductor {
    /// This process can begin a stage.
    fn arrive(&mut self, stage: &'static str);
    /// The stage begins at this time, once everybody arrived.
    fn go(&mut self, clock: &Clock) -> Option<Nanos>;
    /// Whether to end early.
    fn stopped(&self) -> bool;
    /// Something to show.
    fn progress(&mut self, line: &dyn Fn() -> Progress);
    /// What wakes the loop when there is news.
    fn attach(&mut self, waker: Arc<Waker>);
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Connected now.
    pub live: usize,
    /// Clients in all.
    pub of: usize,
    /// What the load has done.
    pub text: String,
}

/// What a process of several says on stdout, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
    /// It can begin this stage.
    Arrived(String),
    /// How far it is.
    Progress(Progress),
    /// It is done.
    Done(Box<Tally>),
}

/// Set at the first SIGINT; a waker is called then, once there is one.
#[derive(Debug, Default)]
pub struct Interrupt {
    set: AtomicBool,
    waker: OnceLock<Arc<Waker>>,
}

impl Interrupt {
    /// Listens to SIGINT from now on: the first asks for an early end, the second ends the process at once.
    ///
    /// # Errors
    /// When there is no thread or handler to be had.
    pub fn listen() -> anyhow::Result<Arc<Self>> {
        let interrupt = Arc::new(Self::default());
        let told = Arc::clone(&interrupt);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // It waits for a signal that may never come, and ends with the process.
        std::thread::Builder::new().name("bench-signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    if told.set.swap(true, Ordering::SeqCst) {
                        std::process::exit(130);
                    }
                    told.wake();
                }
            });
        })?;
        Ok(interrupt)
    }

    /// Whether it came.
    pub fn came(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        // A loop that cannot be woken comes around by itself.
        let _ = self.waker.get().map(|waker| waker.wake());
    }
}

/// One line on stderr, drawn again and again; nothing where stderr is no terminal.
#[derive(Debug)]
pub struct Screen {
    shown: Option<Instant>,
    terminal: bool,
}

impl Screen {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self { shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows a line, if it is time to.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS) {
            self.shown = Some(Instant::now());
            // When that fails nobody is left to be told.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{}", line());
        }
    }

    /// Leaves the line empty for what comes next.
    pub fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// One process alone.
pub struct Alone {
    /// What the servers use.
    pub watch: Watch,
    screen: Screen,
    interrupt: Arc<Interrupt>,
    stage: &'static str,
}

impl Alone {
    /// Begins.
    pub fn new(watch: Watch, interrupt: Arc<Interrupt>) -> Self {
        Self { watch, screen: Screen::new(), interrupt, stage: "" }
    }

    /// Ends the progress line.
    pub fn clear(&self) {
        self.screen.clear();
    }
}

impl Conductor for Alone {
    fn arrive(&mut self, stage: &'static str) {
        self.watch.mark(stage);
        self.stage = stage;
    }

    fn go(&mut self, clock: &Clock) -> Option<Nanos> {
        Some(clock.now())
    }

    fn stopped(&self) -> bool {
        self.interrupt.came()
    }

    fn progress(&mut self, line: &dyn Fn() -> Progress) {
        let stage = self.stage;
        self.screen.show(|| {
            let Progress { live, of, text } = line();
            format!("{stage}: {live} of {of} connected; {text}")
        });
    }

    fn attach(&mut self, waker: Arc<Waker>) {
        // Set once: a process has one fleet.
        let _ = self.interrupt.waker.set(waker);
    }
}

/// One of several: told over stdin, tells over stdout.
pub struct Worker {
    told: Arc<Told>,
    shown: Instant,
}

#[derive(Debug, Default)]
struct Told {
    /// When the stage begins, on the wall clock.
    go: Mutex<Option<u128>>,
    stop: AtomicBool,
    waker: OnceLock<Arc<Waker>>,
}

impl Worker {
    /// Listens to stdin from now on. Its end means that the first process is gone, and so is the run.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new() -> anyhow::Result<Self> {
        let told = Arc::new(Told::default());
        let listener = Arc::clone(&told);
        // It waits for a line that may never come, and ends with the process.
        std::thread::Builder::new().name("bench-stdin".to_owned()).spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                match line.strip_prefix("go ").and_then(|wall| wall.parse().ok()) {
                    Some(wall) => *listener.go.lock().expect("nobody panics holding it") = Some(wall),
                    None => listener.stop.store(true, Ordering::SeqCst),
                }
                let _ = listener.waker.get().map(|waker| waker.wake());
            }
            listener.stop.store(true, Ordering::SeqCst);
            let _ = listener.waker.get().map(|waker| waker.wake());
        })?;
        Ok(Self { told, shown: Instant::now() })
    }

    /// Says a line to the first process; if that is gone, stdin ends too.
    pub fn say(&self, line: &Line) {
        if let Ok(text) = serde_json::to_string(line) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }
}

impl Conductor for Worker {
    fn arrive(&mut self, stage: &'static str) {
        self.say(&Line::Arrived(stage.to_owned()));
    }

    fn go(&mut self, clock: &Clock) -> Option<Nanos> {
        let wall = self.told.go.lock().expect("nobody panics holding it").take()?;
        Some(clock.of_wall(wall))
    }

    fn stopped(&self) -> bool {
        self.told.stop.load(Ordering::SeqCst)
    }

    fn progress(&mut self, line: &dyn Fn() -> Progress) {
        if self.shown.elapsed() >= PROGRESS {
            self.shown = Instant::now();
            self.say(&Line::Progress(line()));
        }
    }

    fn attach(&mut self, waker: Arc<Waker>) {
        let _ = self.told.waker.set(waker);
    }
}
