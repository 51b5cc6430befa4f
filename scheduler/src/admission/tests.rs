//! The queue from outside: who is let in when, with clients that behave as the SDK does.

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const POOL: &str = "stable";

/// Between the monotonic clock and the wall clock of these tests.
const WALL_MS: i64 = 1_795_000_000_000;

fn now(ms: i64) -> Now {
    Now { monotonic_ms: ms, wall_ms: WALL_MS + ms }
}

/// The same now and later.
fn even(per_second: u64) -> Rates {
    Rates { now: per_second, later: per_second }
}

fn admission(per_second: u64) -> Admission {
    let mut admission = Admission::default();
    admission.budgets([(POOL, even(per_second))].into_iter(), 0);
    admission
}

fn ask(admission: &mut Admission, showing: Showing, ms: i64) -> Turn {
    admission.ask(POOL, showing, now(ms), || true)
}

fn newcomers(admission: &mut Admission, count: usize) {
    for _ in 0..count {
        let _ = ask(admission, Showing::Nothing, 0);
    }
}

/// The first newcomer who has to wait, after a second's worth at once.
fn queued(admission: &mut Admission) -> Shown {
    for id in 0.. {
        if let Turn::At(place) = ask(admission, Showing::Nothing, 0) {
            return Shown { place, issuer: 1, id };
        }
    }
    unreachable!("the budget has an end")
}

fn due_ms(shown: Shown) -> i64 {
    shown.place.due_ms - WALL_MS
}

fn seen(admission: &Admission, seen: TokenSeen) -> u64 {
    admission.counts().tokens[seen as usize]
}

#[test]
fn below_the_budget_nobody_waits() {
    let mut admission = admission(100);
    for ms in 0..2_000 {
        if ms % 10 == 0 {
            assert_eq!(ask(&mut admission, Showing::Nothing, ms), Turn::Now, "at {ms} ms");
        }
    }
    assert_eq!(admission.seen(POOL, 2_000).expect("known").wait_ms, 0);
}

#[test]
fn a_place_is_kept_until_its_time_and_good_once_and_once_more_if_the_answer_was_lost() {
    let mut admission = admission(100);
    let shown = queued(&mut admission);
    newcomers(&mut admission, 500);
    assert_eq!(ask(&mut admission, Showing::Place(shown), 0), Turn::At(shown.place), "early: the same again");
    assert_eq!(ask(&mut admission, Showing::Place(shown), due_ms(shown)), Turn::Now, "past all newcomers");
    assert_eq!(ask(&mut admission, Showing::Place(shown), due_ms(shown)), Turn::Now, "the answer was lost");
    let again = ask(&mut admission, Showing::Place(shown), due_ms(shown));
    assert!(matches!(again, Turn::At(place) if place.due_ms > shown.place.due_ms + 1_000), "{again:?}");
    assert_eq!(
        [TokenSeen::Early, TokenSeen::Honoured, TokenSeen::Again, TokenSeen::Used]
            .map(|one| seen(&admission, one)),
        [1; 4]
    );
}

#[test]
fn who_comes_much_too_late_or_with_a_forged_token_is_a_newcomer() {
    let mut admission = admission(10);
    let shown = queued(&mut admission);
    newcomers(&mut admission, 500);
    let late = ask(&mut admission, Showing::Place(shown), due_ms(shown) + KEPT_MS + 1);
    assert!(matches!(late, Turn::At(place) if place.due_ms > WALL_MS + 40_000), "at the end: {late:?}");
    assert!(matches!(ask(&mut admission, Showing::Forged, 0), Turn::At(_)));
    assert_eq!([TokenSeen::Late, TokenSeen::Forged].map(|one| seen(&admission, one)), [1; 2]);
}

#[test]
fn who_waited_for_long_may_be_late_by_a_tenth_of_it() {
    let mut admission = admission(10);
    newcomers(&mut admission, 2_000);
    let shown = queued(&mut admission);
    assert!(due_ms(shown) > 190_000);
    newcomers(&mut admission, 3_000);
    let kept_until_ms = due_ms(shown) * 11 / 10;
    assert!(matches!(ask(&mut admission, Showing::Place(shown), kept_until_ms + 1), Turn::At(_)));
    assert_eq!(ask(&mut admission, Showing::Place(shown), kept_until_ms), Turn::Now);
}

/// How many newcomers are let in at once, after 80 came with places that were given elsewhere.
fn room_after(shows: impl Fn(Shown) -> Showing) -> usize {
    let mut admission = admission(100);
    for id in 0..80 {
        let place = Place { due_ms: WALL_MS, issued_ms: WALL_MS - 10_000 };
        let showing = shows(Shown { place, issuer: 2, id });
        assert_eq!(ask(&mut admission, showing, 0), Turn::Now);
        assert_eq!(ask(&mut admission, showing, 0), Turn::Now, "again: counted once");
    }
    (0..500).filter(|_| ask(&mut admission, Showing::Nothing, 0) == Turn::Now).count()
}

#[test]
fn a_place_that_a_lost_scheduler_gave_is_counted_by_who_honours_it() {
    let (counted, orphans) = (room_after(Showing::Place), room_after(Showing::Orphan));
    assert!(counted >= 100 && counted - orphans == 80, "{counted}, and {orphans} where nobody had counted");
}

#[test]
fn who_has_no_place_comes_some_time_in_the_second_half() {
    let mut rng = SmallRng::seed_from_u64(1);
    let waits: Vec<u32> = (0..1_000).map(|_| anywhere_up_to(LONGEST_WAIT_MS, &mut rng)).collect();
    assert!(waits.iter().all(|wait| (LONGEST_WAIT_MS / 2..=LONGEST_WAIT_MS).contains(wait)));
    let early = waits.iter().filter(|wait| **wait < LONGEST_WAIT_MS * 3 / 4).count();
    assert!((400..600).contains(&early), "{early}");
    assert_eq!(anywhere_up_to(1, &mut rng), 1, "a wait is never 0");
}

#[test]
fn who_waits_for_a_place_that_has_become_free_gets_it() {
    let mut admission = admission(10);
    let shown = queued(&mut admission);
    newcomers(&mut admission, 500);
    admission.budgets([(POOL, even(10_000))].into_iter(), 1);
    assert!(due_ms(shown) > 101);
    assert_eq!(ask(&mut admission, Showing::Place(shown), 1), Turn::Now);
    assert!(matches!(ask(&mut admission, Showing::Place(shown), 1), Turn::Now), "as anybody would be");
    assert_eq!(seen(&admission, TokenSeen::Used), 1);
}

#[test]
fn who_may_hold_no_more_places_is_told_the_wait_and_moves_nobody() {
    let mut admission = admission(10);
    let first = queued(&mut admission);
    for _ in 0..1_000 {
        let turn = admission.ask(POOL, Showing::Nothing, now(0), || false);
        assert_eq!(turn, Turn::Later(u32::try_from(due_ms(first) + 100).expect("short")));
    }
    let next = ask(&mut admission, Showing::Nothing, 0);
    assert!(matches!(next, Turn::At(place) if place.due_ms == first.place.due_ms + 100), "{next:?}");
}

#[test]
fn beyond_the_longest_wait_no_place_is_kept() {
    let mut admission = admission(1);
    let turns: Vec<Turn> = (0..400).map(|_| ask(&mut admission, Showing::Nothing, 0)).collect();
    let kept = turns.iter().filter(|turn| matches!(turn, Turn::At(_))).count();
    assert!((298..=301).contains(&kept), "{kept}");
    assert_eq!(turns[399], Turn::Later(LONGEST_WAIT_MS));
}

#[test]
fn pools_do_not_wait_for_each_other_and_end_with_their_gateways() {
    let mut admission = Admission::default();
    admission.budgets([("canary", even(1)), (POOL, even(100))].into_iter(), 0);
    for _ in 0..50 {
        let _ = admission.ask("canary", Showing::Nothing, now(0), || true);
    }
    assert_eq!(ask(&mut admission, Showing::Nothing, 0), Turn::Now);
    assert_eq!(admission.all(0).0, 101);
    assert!(admission.all(0).1 > 40_000);
    admission.budgets([(POOL, even(100))].into_iter(), 100);
    assert_eq!((admission.all(100), admission.seen("canary", 100)), ((100, 0), None));
}

#[test]
fn demand_is_those_who_come_and_those_who_wait() {
    let mut admission = admission(100);
    assert_eq!(admission.wanted(POOL, 0), 0);
    for ms in 1..=3_000 {
        if ms % 2 == 0 {
            let _ = ask(&mut admission, Showing::Nothing, ms);
        }
        if ms % 100 == 0 {
            admission.budgets([(POOL, even(100))].into_iter(), ms);
        }
    }
    // 500 a second for 3 s at a budget of 100: some 1,100 wait.
    let wanted = admission.wanted(POOL, 3_000);
    assert!((900..1_150).contains(&wanted), "{wanted}");
    for ms in (3_100..60_000).step_by(100) {
        admission.budgets([(POOL, even(100))].into_iter(), ms);
    }
    assert_eq!(admission.wanted(POOL, 60_000), 0);
    admission.sent(POOL, 60_000);
    admission.budgets([(POOL, even(100))].into_iter(), 60_100);
    assert!(admission.wanted(POOL, 60_100) > 0, "who is sent on counts");
}

#[test]
fn what_was_used_is_remembered_within_bounds() {
    let mut used = Used::default();
    for id in 0..2 * MAX_USED as u64 {
        let place = Place { due_ms: WALL_MS + 60_000, issued_ms: WALL_MS };
        used.insert(Shown { place, issuer: 1, id }, WALL_MS);
    }
    assert_eq!((used.ids.len(), used.order.len()), (MAX_USED, MAX_USED));
    let place = Place { due_ms: WALL_MS, issued_ms: WALL_MS };
    used.insert(Shown { place, issuer: 1, id: 1 }, WALL_MS + 100_000);
    assert_eq!(used.ids.len(), 1, "what is too late to be shown is forgotten");
}

/// A client of the crowd: when it asks next, and with what.
struct Waiting {
    at_ms: i64,
    showing: Showing,
    told_ms: Option<i64>,
}

/// A crowd that comes within `within_ms` to two replicas with such leases. Returns when each was let in, and how
/// late after what it was told first.
fn crowd(size: usize, within_ms: i64, leases: Rates, seed: u64) -> Vec<(i64, i64)> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let tokens = QueueTokens::new(b"0123456789abcdef0123456789abcdef", &[], 1);
    let mut replicas = [Admission::default(), Admission::default()];
    for replica in &mut replicas {
        replica.budgets([(POOL, leases)].into_iter(), 0);
    }
    let waiting =
        |_| Waiting { at_ms: rng.random_range(0..within_ms), showing: Showing::Nothing, told_ms: None };
    let mut clients: Vec<Waiting> = (0..size).map(waiting).collect();
    let mut let_in = vec![(0, 0); size];
    let mut order: std::collections::BTreeSet<(i64, usize)> =
        clients.iter().enumerate().map(|(who, client)| (client.at_ms, who)).collect();
    while let Some((ms, who)) = order.pop_first() {
        let (user, client) = (format!("u{who}"), &mut clients[who]);
        let owner = Owner { pool: POOL, user: &user, device: "d" };
        // Whichever replica it comes to.
        let replica = &mut replicas[rng.random_range(0..2)];
        match ask(replica, client.showing, ms) {
            Turn::Now => let_in[who] = (ms, ms - client.told_ms.unwrap_or(ms)),
            Turn::At(place) => {
                let token = tokens.make(place, owner);
                client.showing = tokens.read(&token, owner).map_or(Showing::Forged, Showing::Place);
                // The SDK waits as long as it is told, and up to its first back-off.
                let told_ms = place.due_ms - WALL_MS;
                client.told_ms.get_or_insert(told_ms);
                order.insert((told_ms + rng.random_range(0..=500), who));
            }
            Turn::Later(_) => unreachable!("the crowd fits into five minutes"),
        }
    }
    let_in
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A storm: everybody is let in by the time he was told, jitter included, and at no time more than the budget and a burst.
    #[test]
    fn a_crowd_is_let_in_at_the_budget_each_when_it_was_told(
        size in 1usize..4_000, within_ms in 1i64..5_000, per_second in 20u64..400, low: bool, seed: u64,
    ) {
        // Half of the budget each, now or only later.
        let half = per_second / 2;
        let leases = Rates { now: if low { 1 } else { half }, later: half };
        let let_in = crowd(size, within_ms, leases, seed);
        let worst = let_in.iter().map(|(_, late)| *late).max().unwrap_or(0);
        prop_assert!(worst <= 500, "let in {worst} ms after the time told");
        let mut times: Vec<i64> = let_in.iter().map(|(at, _)| *at).collect();
        times.sort_unstable();
        for (nth, from) in times.iter().enumerate() {
            for span_ms in [1_000, 5_000] {
                let count = times[nth..].iter().take_while(|at| **at < from + span_ms).count() as i64;
                // A second's worth at once, and the jitter brings half a second's together at the worst.
                let most = per_second as i64 * (span_ms + 1_000 + 500 + 300) / 1_000 + 4;
                prop_assert!(count <= most, "{count} of {most} within {span_ms} ms from {from}");
            }
        }
        let last = times.last().copied().unwrap_or(0);
        let alone = size as i64 * 1_000 / (half as i64 * 2);
        let low_ms = if low { 4_000 } else { 0 };
        let most = within_ms + low_ms + alone * 3 / 2 + 2_000;
        prop_assert!(last <= most, "done after {last} ms, the budget takes {alone}");
    }
}
