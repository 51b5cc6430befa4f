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
    /// The workers are slow to list whom a job is about.
    late: bool,
    placed: usize,
    homes: usize,
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
            late: false,
            placed: 0,
            homes: 0,
        }
    }

    fn connections(&self) -> u64 {
        self.left.iter().sum()
    }

    fn list(&self, job: &Job) {
        for (worker, left) in (0..).zip(&self.left) {
            job.open(worker, usize::try_from(*left).expect("small"), 0);
        }
    }

    fn turn(&mut self) {
        for act in self.mover.turn(self.now, &[true, true], self.connections()) {
            match act {
                Act::Serve(serves) => self.serves = serves,
                Act::Begin(job) => {
                    if !self.late {
                        self.list(&job);
                    }
                    self.job = Some(job);
                }
                Act::Grant(shares) => self.grant(&shares),
                Act::End => self.job = None,
                Act::TellRest(_) => {
                    self.told += self.connections();
                    self.left.fill(0);
                }
                Act::Placed => self.placed += 1,
                Act::Homes => self.homes += 1,
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

fn word(placement: u64) -> Introduction {
    Introduction { policy_version: 1, placement, moves_per_second: 100, ..Introduction::default() }
}

#[test]
fn a_sweep_asks_about_everybody_once() {
    let mut world = World::new(&[50, 50]);
    world.mover.introduced(0, &word(1));
    world.pass(500);
    assert!(world.granted.is_empty(), "with the first word nobody is in a wrong place");
    assert_eq!(world.placed, 1, "but tickets of before may lead to one");
    world.mover.introduced(0, &word(2));
    world.pass(3_000);
    assert_eq!(world.granted.iter().map(|(_, count)| count).sum::<u64>(), 100);
    assert_eq!(world.mover.progress()[0].purpose(), MovePurpose::Sweep);
    assert!(!world.mover.busy());
    assert_eq!((world.placed, world.homes), (2, 0));
    world.mover.introduced(0, &Introduction { homes: 7, ..word(2) });
    world.pass(500);
    assert_eq!((world.placed, world.homes), (2, 1), "only homes came or went");
}

fn told(world: &World, purpose: MovePurpose) -> MoveProgress {
    let progress = world.mover.progress();
    progress.into_iter().find(|one| one.purpose() == purpose).expect("told")
}

fn order(id: u64, count: u64) -> MoveOrder {
    MoveOrder { id, count, per_second: 100, within_permille: 100, spread_ms: 0 }
}

#[test]
fn a_drain_that_is_stopped_moves_nobody_more() {
    let mut world = World::new(&[100]);
    let begun = Drain { wait_lb_ms: 0, ..drain(50) };
    world.mover.drain(1, begun.clone());
    world.pass(1_000);
    let half = world.connections();
    assert!((30..70).contains(&half), "{half}");
    world.mover.drain(2, Drain { active: false, ..begun });
    world.pass(5_000);
    assert_eq!((world.serves, world.connections(), world.job.is_some()), (true, half, false));
    let progress = told(&world, MovePurpose::Drain);
    assert_eq!((progress.phase.as_str(), progress.left, progress.moved), ("stopped", half, 100 - half));
    assert!(!world.mover.busy());
}

#[test]
fn where_a_drain_sends_clients_holds_while_it_lasts() {
    let mut world = World::new(&[10]);
    let begun = Drain { to_pool: "green".to_owned(), ..drain(50) };
    world.mover.drain(1, begun.clone());
    assert_eq!(world.mover.to_pool(), "green");
    world.mover.drain(2, Drain { active: false, ..begun });
    assert_eq!(world.mover.to_pool(), "");
}

#[test]
fn an_order_that_is_told_again_is_carried_out_once() {
    let mut world = World::new(&[500]);
    for _ in 0..3 {
        world.mover.ordered(order(5, 50));
        world.pass(2_000);
        assert_eq!(world.connections(), 450);
    }
    // One that comes while the gateway is emptied is not kept for when it serves again.
    world.held = Some("nowhere");
    world.mover.drain(1, Drain { wait_lb_ms: 0, ..drain(50) });
    world.pass(100);
    world.mover.ordered(order(6, 50));
    world.pass(100);
    world.held = None;
    world.mover.drain(2, Drain { active: false, ..drain(50) });
    world.pass(2_000);
    assert_eq!(world.connections(), 450);
}

#[test]
fn nothing_is_over_before_every_worker_has_listed() {
    for rebalance in [false, true] {
        let mut world = World::new(&[50, 50]);
        world.mover.introduced(0, &word(1));
        world.turn();
        world.late = true;
        match rebalance {
            true => world.mover.ordered(order(1, 100)),
            false => world.mover.introduced(0, &word(2)),
        }
        world.pass(1_000);
        let job = world.job.clone().expect("begun");
        job.open(0, 0, 0);
        world.pass(1_000);
        assert!(world.job.is_some(), "the other worker has not listed");
        world.list(&job);
        world.pass(3_000);
        assert_eq!((world.connections(), world.job.is_some()), (0, false));
    }
}

#[test]
fn a_sweep_that_something_goes_before_goes_on_afterwards() {
    let begun = || {
        let mut world = World::new(&[1_000]);
        world.mover.introduced(0, &word(1));
        world.turn();
        world.mover.introduced(0, &word(2));
        world.pass(1_000);
        assert_eq!((told(&world, MovePurpose::Sweep).phase.as_str(), world.placed), ("moving", 2));
        world
    };
    let mut stopped = begun();
    let before = stopped.connections();
    stopped.mover.ordered(order(1, 0));
    stopped.pass(1_000);
    assert!(stopped.connections() < before, "an order of nobody ends no sweep");

    let mut evened = begun();
    evened.mover.ordered(order(1, 100));
    evened.turn();
    assert_eq!(told(&evened, MovePurpose::Sweep).phase, "paused");
    evened.pass(20_000);
    assert_eq!((evened.connections(), told(&evened, MovePurpose::Sweep).phase.as_str()), (0, "done"));

    let mut drained = begun();
    drained.held = Some("nowhere");
    drained.mover.drain(1, Drain { wait_lb_ms: 0, ..drain(50) });
    drained.pass(1_000);
    drained.held = None;
    drained.mover.drain(2, Drain { active: false, ..drain(50) });
    drained.pass(20_000);
    assert_eq!((drained.connections(), told(&drained, MovePurpose::Sweep).phase.as_str()), (0, "done"));
}

#[test]
fn a_sweep_keeps_to_what_the_policy_says_now() {
    let at = |policy_version, moves_per_second| Introduction { policy_version, moves_per_second, ..word(2) };
    let mut world = World::new(&[1_000]);
    world.mover.introduced(0, &word(1));
    world.turn();
    world.mover.introduced(0, &at(2, 0));
    world.pass(1_000);
    assert_eq!((world.connections(), world.placed), (1_000, 1), "it waits");
    let moved = |world: &mut World, policy_version, per_second| {
        let before = world.connections();
        world.mover.introduced(0, &at(policy_version, per_second));
        world.pass(2_000);
        before - world.connections()
    };
    let fast = moved(&mut world, 3, 100);
    assert!((150..=230).contains(&fast), "{fast}");
    let slow = moved(&mut world, 4, 10);
    assert!((15..=30).contains(&slow), "{slow}");
    assert_eq!(moved(&mut world, 5, 0), 0);
    assert_eq!(told(&world, MovePurpose::Sweep).phase, "paused");
    moved(&mut world, 6, 10_000);
    assert_eq!(world.connections(), 0);
}

#[test]
fn only_schedulers_that_place_so_are_asked() {
    let mut world = World::new(&[1_000]);
    world.mover.introduced(0, &word(1));
    world.mover.introduced(1, &word(1));
    world.turn();
    world.mover.introduced(1, &Introduction { policy_version: 2, ..word(2) });
    world.pass(11_000);
    let job = world.job.clone().expect("the newest policy is believed");
    assert_eq!(job.among(), 0b10);
    world.mover.introduced(0, &Introduction { policy_version: 2, ..word(2) });
    world.turn();
    assert_eq!(job.among(), 0b11);
}
