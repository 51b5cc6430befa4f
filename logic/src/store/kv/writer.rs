//! One writer at a time, and slices of bulk work behind whoever waits when they come.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
    /// Those of them that have let everybody go first whom they had to: nobody comes between any more.
    due: u64,
}

impl Writer {
    pub(super) fn new(ids: Snowflake) -> Self {
        Self { turn: Mutex::new(ids), gate: Mutex::default(), passed: Condvar::new() }
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, Snowflake> {
        let mut gate = locked(&self.gate);
        gate.waiting += 1;
        while gate.due > 0 {
            gate = self.wait(gate);
        }
        drop(gate);
        let turn = locked(&self.turn);
        let mut gate = locked(&self.gate);
        gate.waiting -= 1;
        gate.turns += 1;
        self.tell(gate);
        turn
    }

    /// After as many turns as were waited for when it was asked for: whoever comes later waits for this one, so that
    /// bulk work goes on under any load, and others wait for one slice of each who has such work at most.
    pub(super) fn turn_of_a_slice(&self) -> MutexGuard<'_, Snowflake> {
        let mut gate = locked(&self.gate);
        let mine = gate.turns + gate.waiting;
        gate.slices += 1;
        while gate.waiting > 0 && gate.turns < mine {
            gate = self.wait(gate);
        }
        gate.due += 1;
        drop(gate);
        let turn = locked(&self.turn);
        let mut gate = locked(&self.gate);
        gate.due -= 1;
        gate.slices -= 1;
        drop(gate);
        self.passed.notify_all();
        turn
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
}
