//! Several load-generating processes: each takes a share, all begin their stages together, and their counts are added up.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use super::{
    conductor::{Interrupt, Line, Progress, Screen},
    tally::Tally,
    watch::Watch,
};

/// A stage begins so long after everybody is told, so that all have heard it: ten times a pipe's way on a busy machine.
const HEADS_UP: Duration = Duration::from_millis(20);

/// Between two looks at the signal.
const LOOK: Duration = Duration::from_millis(100);

/// Lines that wait to be dealt with; a worker that writes more waits.
const LINES: usize = 1_024;

/// `count` things, of which process `index` of `of` takes these.
pub fn share(count: usize, index: usize, of: usize) -> std::ops::Range<usize> {
    count * index / of..count * (index + 1) / of
}

/// One of several processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub index: usize,
    /// Of so many.
    pub of: usize,
    /// Names the run: its users, its group, its messages.
    pub run: String,
}

impl Place {
    /// The only one.
    pub fn alone() -> Self {
        Self { index: 0, of: 1, run: format!("{:08x}", rand::random::<u32>()) }
    }

    /// As told by the first process: INDEX/COUNT/RUN.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (index, of) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let run = parts.next()?.to_owned();
        (index < of).then_some(Self { index, of, run })
    }
}

struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
    arrived: bool,
    progress: Progress,
    done: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        if !self.done {
            // It is gone already, or will be.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

/// The run of several processes.
pub struct Workers {
    workers: Vec<Worker>,
    lines: Receiver<(usize, Option<Line>)>,
    tally: Tally,
    stage: String,
    screen: Screen,
}

impl Workers {
    /// Starts `of` processes with this one's own arguments.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(of: usize, run: &str) -> anyhow::Result<Self> {
        let (say, lines) = sync_channel(LINES);
        let start = |index| spawn(index, of, run, say.clone());
        let workers = (0..of).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { workers, lines, tally: Tally::default(), stage: String::new(), screen: Screen::new() })
    }

    /// Conducts until all are done; gives the sum. A process that dies is an error in it.
    pub fn run(mut self, watch: &mut Watch, interrupt: &Arc<Interrupt>) -> Tally {
        let mut stopped = false;
        while self.workers.iter().any(|worker| !worker.done) {
            match self.lines.recv_timeout(LOOK) {
                Ok((index, line)) => self.hear(index, line, watch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if interrupt.came() && !stopped {
                stopped = true;
                self.tell("stop");
            }
            let (stage, workers) = (&self.stage, &self.workers);
            self.screen.show(|| {
                let sum = |of: fn(&Progress) -> usize| workers.iter().map(|w| of(&w.progress)).sum::<usize>();
                let texts: Vec<&str> = workers.iter().map(|worker| worker.progress.text.as_str()).collect();
                let (live, of) = (sum(|p| p.live), sum(|p| p.of));
                format!("{stage}: {live} of {of} connected; {}", texts.join(" | "))
            });
        }
        self.screen.clear();
        self.tally
    }

    fn hear(&mut self, index: usize, line: Option<Line>, watch: &mut Watch) {
        let worker = &mut self.workers[index];
        match line {
            Some(Line::Arrived(stage)) => {
                worker.arrived = true;
                self.stage = stage;
            }
            Some(Line::Progress(progress)) => worker.progress = progress,
            Some(Line::Done(tally)) => {
                worker.done = true;
                self.tally.merge(*tally);
            }
            None if worker.done => {}
            None => {
                worker.done = true;
                self.tally.error("generator:process-died");
                self.tally.aborted = true;
            }
        }
        let waiting = |worker: &Worker| !worker.done && !worker.arrived;
        if self.workers.iter().any(|worker| worker.arrived) && !self.workers.iter().any(waiting) {
            watch.mark(&self.stage);
            self.workers.iter_mut().for_each(|worker| worker.arrived = false);
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + HEADS_UP;
            self.tell(&format!("go {}", wall.as_nanos()));
        }
    }

    fn tell(&mut self, line: &str) {
        for stdin in self.workers.iter_mut().filter_map(|worker| worker.stdin.as_mut()) {
            // One that died is noticed by the end of its output.
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
    }
}

fn spawn(
    index: usize,
    of: usize,
    run: &str,
    say: SyncSender<(usize, Option<Line>)>,
) -> anyhow::Result<Worker> {
    let program = std::env::current_exe().context("finding this program to start it again")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["--worker".to_owned(), format!("{index}/{of}/{run}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a load-generating process")?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().context("stdout is piped")?;
    let reader = std::thread::Builder::new().name(format!("bench-worker-{index}")).spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(line) = serde_json::from_str(&line)
                && say.send((index, Some(line))).is_err()
            {
                return;
            }
        }
        // Refused when nobody listens any more.
        let _ = say.send((index, None));
    })?;
    let progress = Progress::default();
    Ok(Worker { child, stdin, reader: Some(reader), arrived: false, progress, done: false })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_everything_once_and_differ_by_one(count in 0..100_000usize, of in 1..64usize) {
            let shares: Vec<_> = (0..of).map(|index| share(count, index, of)).collect();
            prop_assert_eq!(shares[0].start, 0);
            prop_assert_eq!(shares[of - 1].end, count);
            prop_assert!(shares.windows(2).all(|two| two[0].end == two[1].start));
            let sizes = shares.iter().map(ExactSizeIterator::len);
            prop_assert!(sizes.clone().max().unwrap_or(0) - sizes.min().unwrap_or(0) <= 1);
        }
    }

    #[test]
    fn a_place_is_read_from_its_argument() {
        let place = Place { index: 1, of: 3, run: "0a0b0c0d".to_owned() };
        assert_eq!(Place::parse("1/3/0a0b0c0d"), Some(place));
        assert!(["3/3/x", "1", "a/b/c", "1/3"].into_iter().all(|text| Place::parse(text).is_none()));
    }
}
