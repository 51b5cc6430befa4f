//! The mover against made-up workers: phases, pace, pauses, and that nobody is begun with twice.

use super::*;

/// Workers that list so many connections each, and answer at once.
struct World {
    mover: Mover,
    now: Now,
    /// Connections that nobody asked about, by worker.
    left: Vec<u64>,
    job: Option<Arc<Job>>,
    /// What a scheduler answers.
    held: Option<&'static str>,
    serves: bool,
    told: u64,
    granted: Vec<(i64, u64)>,
}

const STARTED: i64 = 1_000_000;

fn drain(rate_per_second: u32) -> Drain {
    Drain {
        gateway_id: "gw-1".to_owned(),
        active: true,
        rate_per_second,
        started_at_ms: STARTED,
        deadline_ms: STARTED + 60_000,
        wait_lb_ms: 1_000,
        ..Drain::default()
    }
}

impl World {
    fn new(left: &[u64]) -> Self {
        Self {
            mover: Mover::new(left.len()),
            now: Now { steady_ms: 500, wall_ms: STARTED },
            left: left.to_vec(),
            job: None,
            held: None,
            serves: true,
            told: 0,
            granted: vec![],
        }
    }

    fn connections(&self) -> u64 {
        self.left.iter().sum()
    }

    fn list(&self, job: &Job) {
        for (worker, left) in (0..).zip(&self.left) {
            job.left(worker, usize::try_from(*left).expect("small"));
        }
    }

    fn turn(&mut self) {
        for act in self.mover.turn(self.now, &[true], self.connections()) {
            match act {
                Act::Serve(serves) => self.serves = serves,
                Act::Begin(job) => {
                    self.list(&job);
                    self.job = Some(job);
                }
                Act::Grant(shares) => self.grant(&shares),
                Act::End => self.job = None,
                Act::TellRest(_) => {
                    self.told += self.connections();
                    self.left.fill(0);
                }
                Act::Placed => {}
            }
        }
    }

    fn grant(&mut self, shares: &[u64]) {
        let job = self.job.clone().expect("begun");
        self.granted.push((self.now.steady_ms, shares.iter().sum()));
        for (left, share) in self.left.iter_mut().zip(shares) {
            assert!(share <= left, "nobody is begun with twice");
            match self.held {
                Some(reason) => job.hold(reason),
                None => {
                    *left -= share;
                    (0..*share).for_each(|_| job.moved());
                }
            }
        }
        self.list(&job);
    }

    /// Turns as the supervisor does, for so long.
    fn pass(&mut self, ms: i64) {
        for _ in 0..ms / TICK_MS {
            self.now.steady_ms += TICK_MS;
            self.now.wall_ms += TICK_MS;
            self.turn();
        }
    }

    fn phase(&self) -> Option<&'static str> {
        self.mover.phase().map(Phase::name)
    }
}

#[test]
fn a_drain_waits_moves_at_its_rate_and_ends_with_the_operators_word() {
    let mut world = World::new(&[60, 40]);
    world.mover.drain(7, drain(50));
    world.turn();
    assert_eq!((world.serves, world.phase()), (false, Some("wait_lb")));
    world.pass(950);
    assert_eq!(world.connections(), 100, "load balancers are given time");
    world.pass(1_000);
    assert!((45..=60).contains(&world.connections()), "{} left", world.connections());
    assert_eq!(world.phase(), Some("moving"));
    world.pass(2_000);
    assert_eq!((world.connections(), world.phase()), (0, Some("done")));
    let progress = &world.mover.progress()[0];
    assert_eq!((progress.order, progress.moved, progress.left), (7, 100, 0));
    assert!(!world.mover.busy(), "an empty gateway is no work");

    world.mover.drain(7, Drain { active: false, ..drain(50) });
    world.turn();
    assert!(!world.serves, "the same version again is no news");
    world.mover.drain(8, Drain { active: false, ..drain(50) });
    world.turn();
    assert_eq!((world.serves, world.phase()), (true, None));
}

#[test]
fn it_pauses_while_nobody_should_be_moved_and_goes_on_by_itself() {
    let mut world = World::new(&[1_000]);
    world.mover.drain(1, Drain { wait_lb_ms: 0, ..drain(100) });
    world.pass(1_000);
    let before = world.connections();
    world.held = Some("gw-2 is busy");
    world.pass(1_000);
    assert_eq!((world.connections(), world.phase()), (before, Some("paused")));
    let tried = world.granted.len();
    world.pass(10_000);
    assert_eq!(world.connections(), before);
    let probes = &world.granted[tried..];
    assert!(probes.len() <= 6 && probes.iter().all(|(_, count)| *count == 1), "one now and then: {probes:?}");
    assert_eq!(world.mover.progress()[0].reason, "gw-2 is busy");
    world.held = None;
    world.pass(3_000);
    assert!(world.connections() < before && world.phase() == Some("moving"));
    let after_pause = world.granted.iter().map(|(_, count)| *count).max();
    assert!(after_pause <= Some(25), "what was not moved meanwhile is not made up for: {after_pause:?}");
}

#[test]
fn at_the_deadline_the_rest_is_told_at_once_even_if_paused() {
    let mut world = World::new(&[10_000]);
    world.held = Some("nowhere");
    world.mover.drain(1, drain(100));
    world.pass(59_900);
    assert_eq!((world.connections(), world.told), (10_000, 0));
    world.pass(200);
    assert_eq!((world.connections(), world.told), (0, 10_000));
}

#[test]
fn a_gateway_that_is_started_again_goes_on_where_its_drain_is() {
    let mut world = World::new(&[0]);
    (world.now.wall_ms, world.now.steady_ms) = (STARTED + 30_000, STARTED + 30_000);
    world.mover.drain(1, drain(100));
    world.turn();
    assert_eq!((world.serves, world.phase()), (false, Some("done")));
    world.left[0] = 3;
    world.now.wall_ms = STARTED + 60_000;
    world.turn();
    assert_eq!(world.told, 3, "whoever slipped in before it knew");
}

#[test]
fn a_rebalance_moves_as_many_as_were_ordered_and_a_drain_goes_before_it() {
    let order = |id, count| MoveOrder { id, count, per_second: 100, within_permille: 100, spread_ms: 0 };
    let mut world = World::new(&[300, 200]);
    world.mover.ordered(order(5, 120));
    world.pass(3_000);
    assert_eq!(world.connections(), 380);
    let progress = world.mover.progress()[0].clone();
    assert_eq!((progress.order, progress.moved, progress.phase.as_str()), (5, 120, "done"));

    world.mover.ordered(order(6, 100));
    world.pass(500);
    world.mover.ordered(order(7, 0));
    world.pass(100);
    let stopped = world.connections();
    world.pass(2_000);
    assert_eq!(world.connections(), stopped, "an order of nobody ends the one before");

    world.mover.ordered(order(8, 100));
    world.pass(200);
    world.mover.drain(1, Drain { wait_lb_ms: 0, ..drain(1_000) });
    world.pass(2_000);
    assert_eq!((world.connections(), world.phase()), (0, Some("done")));
}

#[test]
fn a_sweep_asks_about_everybody_once() {
    let word = |placement| Introduction {
        policy_version: 1,
        placement,
        moves_per_second: 100,
        ..Introduction::default()
    };
    let mut world = World::new(&[50, 50]);
    world.mover.introduced(0, &word(1));
    world.pass(500);
    assert!(world.granted.is_empty(), "with the first word nobody is in a wrong place");
    world.mover.introduced(0, &word(2));
    world.pass(3_000);
    assert_eq!(world.granted.iter().map(|(_, count)| count).sum::<u64>(), 100);
    assert_eq!(world.mover.progress()[0].purpose(), MovePurpose::Sweep);
    assert!(!world.mover.busy());
}
