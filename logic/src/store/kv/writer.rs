//! One writer at a time, and slices of bulk work behind whoever waits when they come.

use std::{
    ops::{Deref, DerefMut},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::snowflake::Snowflake;

/// The writer's turn: held from a transaction's first read to its commit. Conversation ids come from its own generator.
pub(super) struct Writer {
    turn: Mutex<Snowflake>,
    gate: Mutex<Gate>,
    passed: Condvar,
}

/// Who waits, and who has passed. The lock alone does not do: whoever gives it back and asks at once has it again before
/// the one who was woken for it runs.
#[derive(Default)]
struct Gate {
    /// Who waits and is not a slice.
    waiting: u64,
    /// Turns of those so far.
    turns: u64,
    /// Slices that wait.
    slices: u64,
    /// The slice that is next, or has its turn: there is one at a time.
    slice: Option<Slice>,
    /// How long the last slice took,
    owed: Duration,
    /// and how long others have had the turn since.
    had: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slice {
    /// It has let go first whom it had to: nobody comes between any more.
    Next,
    Running,
}

impl Gate {
    /// Whether a slice may be next that was asked for when there had been, and were waited for, `mine` turns.
    fn is_due(&self, mine: u64) -> bool {
        let nobody = self.waiting == 0;
        self.slice.is_none() && (nobody || (self.turns >= mine && self.had >= self.owed))
    }
}

/// Somebody's turn, until it is dropped.
pub(super) struct Turn<'a> {
    writer: &'a Writer,
    /// `None`: given back.
    ids: Option<MutexGuard<'a, Snowflake>>,
    begun: Instant,
    is_slice: bool,
}

impl Writer {
    pub(super) fn new(ids: Snowflake) -> Self {
        Self { turn: Mutex::new(ids), gate: Mutex::default(), passed: Condvar::new() }
    }

    /// Small work: it waits for one slice at most before its turn comes among others' small work.
    pub(super) fn turn(&self) -> Turn<'_> {
        let mut gate = locked(&self.gate);
        gate.waiting += 1;
        while gate.slice == Some(Slice::Next) {
            gate = self.wait(gate);
        }
        drop(gate);
        let ids = locked(&self.turn);
        let mut gate = locked(&self.gate);
        gate.waiting -= 1;
        gate.turns += 1;
        self.tell(gate);
        Turn { writer: self, ids: Some(ids), begun: Instant::now(), is_slice: false }
    }

    /// Bulk work: after as many turns as were waited for when it was asked for, and after others have had as much time as
    /// the last slice took, whoever had it. So bulk work goes on under any load, and has half of the time while somebody
    /// else wants it, however many do bulk work.
    pub(super) fn turn_of_a_slice(&self) -> Turn<'_> {
        let mut gate = locked(&self.gate);
        let mine = gate.turns + gate.waiting;
        gate.slices += 1;
        while !gate.is_due(mine) {
            gate = self.wait(gate);
        }
        gate.slice = Some(Slice::Next);
        drop(gate);
        let ids = locked(&self.turn);
        let mut gate = locked(&self.gate);
        gate.slice = Some(Slice::Running);
        gate.slices -= 1;
        drop(gate);
        self.passed.notify_all();
        Turn { writer: self, ids: Some(ids), begun: Instant::now(), is_slice: true }
    }

    fn wait<'a>(&self, gate: MutexGuard<'a, Gate>) -> MutexGuard<'a, Gate> {
        self.passed.wait(gate).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits at the gate: only slices make anybody wait there.
    fn tell(&self, gate: MutexGuard<'_, Gate>) {
        let somebody = gate.slices > 0;
        drop(gate);
        if somebody {
            self.passed.notify_all();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.ids = None;
        let took = self.begun.elapsed();
        let mut gate = locked(&self.writer.gate);
        if self.is_slice {
            (gate.slice, gate.owed, gate.had) = (None, took, Duration::ZERO);
        } else {
            gate.had += took;
        }
        self.writer.tell(gate);
    }
}

const HELD: &str = "a turn is given back when it is dropped";

impl Deref for Turn<'_> {
    type Target = Snowflake;

    fn deref(&self) -> &Snowflake {
        self.ids.as_deref().expect(HELD)
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Snowflake {
        self.ids.as_deref_mut().expect(HELD)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Slices one after the other, as a spread worker asks for them, beside others who ask again and again: both go on.
    #[test]
    fn slices_and_others_take_turns() {
        const EACH: u64 = 200;
        let writer = Arc::new(Writer::new(Snowflake::above(0, 0)));
        let (stop, others) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let beside = |writer: Arc<Writer>, stop: Arc<AtomicBool>, others: Arc<AtomicU64>| {
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    drop(writer.turn());
                    others.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let busy: Vec<_> = (0..3).map(|_| beside(writer.clone(), stop.clone(), others.clone())).collect();
        // What a slice takes: whoever asks meanwhile waits.
        let slices = |writer: &Writer| {
            let begun = Instant::now();
            for _ in 0..EACH {
                let turn = writer.turn_of_a_slice();
                thread::sleep(Duration::from_millis(1));
                drop(turn);
            }
            begun.elapsed()
        };
        let took = slices(&writer);
        let passed = others.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join().expect("it ends"));
        let alone = slices(&writer);
        assert!(passed >= EACH, "{passed} turns of others between {EACH} slices");
        let most = (alone * 30).max(Duration::from_millis(EACH) * 50);
        assert!(took < most, "{EACH} slices took {took:?}, alone {alone:?}");
    }

    /// Two who have nothing but slices, beside others whose work is short and of whom somebody always waits: these have as
    /// much of the time as both of the two together.
    #[test]
    fn however_many_have_slices_others_have_half_of_the_time() {
        const SLICE: Duration = Duration::from_millis(4);
        let writer = Arc::new(Writer::new(Snowflake::above(0, 0)));
        let (stop, slices) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let bulk = |writer: Arc<Writer>, stop: Arc<AtomicBool>, slices: Arc<AtomicU64>| {
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let turn = writer.turn_of_a_slice();
                    thread::sleep(SLICE);
                    drop(turn);
                    slices.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let busy: Vec<_> = (0..2).map(|_| bulk(writer.clone(), stop.clone(), slices.clone())).collect();
        // So many that somebody waits at any moment.
        let (turns, most) = (Arc::new(AtomicU64::new(0)), 400);
        let small = |writer: Arc<Writer>, turns: Arc<AtomicU64>| {
            thread::spawn(move || {
                while turns.fetch_add(1, Ordering::Relaxed) < most {
                    let turn = writer.turn();
                    thread::sleep(SLICE / 8);
                    drop(turn);
                }
            })
        };
        let others: Vec<_> = (0..4).map(|_| small(writer.clone(), turns.clone())).collect();
        others.into_iter().for_each(|thread| thread.join().expect("it ends"));
        let between = slices.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join().expect("it ends"));
        assert!(between > 2, "slices go on: {between}");
        assert!(between < most / 3, "{between} slices between {most} turns of an eighth of one");
    }
}
