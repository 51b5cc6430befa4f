//! What nobody can do to the votes, whatever he says, as however many devices, from however many addresses.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

fn network(number: u32) -> Network {
    let ip = IpAddr::V4(Ipv4Addr::from((20 << 24) + (number << 8)));
    Network::of(ip, None).expect("public")
}

fn tally(votes: &Votes, number: u32, now_s: u32) -> Option<Tally> {
    votes.polled(&network(number), now_s)?.tally("eu")
}

/// Votes of different users with their ages, cast in the order of time. Now is [`LIFETIME_S`].
fn cast_all(votes: &Votes, others: &[(u32, u32)]) {
    let mut in_order: Vec<_> = others.iter().enumerate().collect();
    in_order.sort_by_key(|(_, (_, age_s))| std::cmp::Reverse(*age_s));
    for (user, (ms, age_s)) in in_order {
        votes.cast(&network(1), "eu", &format!("u{user}"), *ms, LIFETIME_S - age_s);
    }
}

fn others() -> impl Strategy<Value = Vec<(u32, u32)>> {
    prop::collection::vec((MIN_MS..=MAX_MS, 0..LIFETIME_S), 1..VOTES)
}

proptest! {
    #[test]
    fn one_user_moves_the_median_by_one_vote(others in others(), says in prop::collection::vec(any::<u32>(), 1..40)) {
        let votes = Votes::default();
        cast_all(&votes, &others);
        for ms in &says {
            votes.cast(&network(1), "eu", "mallory", *ms, LIFETIME_S);
        }
        let found = tally(&votes, 1, LIFETIME_S).expect("votes");
        prop_assert_eq!(found.votes, others.len() + 1, "he has one, and drove nobody out");
        let weight = |holds: &dyn Fn(u32) -> bool| -> i64 {
            others.iter().filter(|(ms, _)| holds(*ms)).map(|(_, age_s)| i64::from(LIFETIME_S - age_s)).sum()
        };
        let all = weight(&|_| true);
        prop_assert_eq!(found.weight as i64, all + i64::from(LIFETIME_S));
        let half = (all - i64::from(LIFETIME_S)) / 2;
        prop_assert!(weight(&|ms| ms <= found.ms) >= half, "others are at or below it, but for his one vote");
        prop_assert!(weight(&|ms| ms >= found.ms) >= half, "and at or above it");
        let said = others.iter().map(|(ms, _)| *ms);
        if all > i64::from(LIFETIME_S) {
            prop_assert!(said.clone().min() <= Some(found.ms) && Some(found.ms) <= said.max(), "between what others said");
        }
    }

    #[test]
    fn old_votes_fade(others in others(), later in 0..2 * LIFETIME_S) {
        let votes = Votes::default();
        cast_all(&votes, &others);
        let weight = |now_s| tally(&votes, 1, now_s).map_or(0, |tally| tally.weight);
        prop_assert!(weight(LIFETIME_S + later) <= weight(LIFETIME_S));
        if later >= LIFETIME_S {
            prop_assert_eq!(tally(&votes, 1, LIFETIME_S + later), None);
        }
    }

    #[test]
    fn whatever_is_said_is_within_bounds(says in prop::collection::vec((0..100u32, any::<u32>()), 1..100)) {
        let votes = Votes::default();
        for (user, ms) in says {
            votes.cast(&network(1), "eu", &format!("u{user}"), ms, 5);
        }
        let found = tally(&votes, 1, 5).expect("votes");
        prop_assert!((MIN_MS..=MAX_MS).contains(&found.ms) && found.votes <= VOTES);
    }
}

#[test]
fn fresh_votes_outweigh_old_ones() {
    let votes = Votes::default();
    cast_all(&votes, &[(500, LIFETIME_S - 60), (500, LIFETIME_S - 60), (500, LIFETIME_S - 60), (20, 0)]);
    assert_eq!(tally(&votes, 1, LIFETIME_S).map(|tally| (tally.ms, tally.votes)), Some((20, 4)));
}

#[test]
fn the_newest_votes_stay() {
    let votes = Votes::default();
    for user in 0..40 {
        let ms = if user < 20 { 900 } else { 30 };
        assert_eq!(votes.cast(&network(1), "eu", &format!("u{user}"), ms, user), Cast::Taken);
    }
    assert_eq!(tally(&votes, 1, 40).map(|tally| (tally.ms, tally.votes)), Some((30, VOTES)));
}

#[test]
fn one_user_with_every_address_drives_nobody_out() {
    let votes = Votes::default();
    let known = 0..1_000;
    let pair = |number: u32| ["alice", "bob"].map(|user| format!("{user}{}", number / (NETWORKS / 2)));
    for number in known.clone() {
        for user in pair(number) {
            assert_eq!(votes.cast(&network(number), "eu", &user, 30, 100), Cast::Taken, "{number}");
        }
    }
    let mallorys = |votes: &Votes, name: &str| {
        (known.end..10_000).filter(|n| votes.cast(&network(*n), "eu", name, 1, 101) == Cast::Taken).count()
    };
    let his = mallorys(&votes, "mallory");
    // A few more, by chance, pass for one that he comes back to.
    assert!((NETWORKS as usize..NETWORKS as usize + 12).contains(&his), "{his}");
    assert_eq!(
        votes.cast(&network(known.end), "eu", "mallory", 2, 102),
        Cast::Taken,
        "he votes there already"
    );
    for n in 0..300 {
        mallorys(&votes, &format!("mallory{n}"));
    }
    assert!(votes.networks() <= SETS * WAYS, "{}", votes.networks());
    assert!(known.clone().all(|number| tally(&votes, number, 102).is_some_and(|tally| tally.votes == 2)));
    // Once those have faded, others may have their place.
    let late = Votes::default();
    for number in 0..40_000 {
        for user in pair(number) {
            late.cast(&network(number), "eu", &user, 30, 0);
        }
    }
    let refused = |votes: &Votes, now_s| {
        let carol = |n: u32| format!("carol{}", n / (NETWORKS / 2));
        (50_000..50_500)
            .filter(|n| votes.cast(&network(*n), "eu", &carol(*n), 30, now_s) == Cast::Full)
            .count()
    };
    assert!(refused(&late, 0) > 450, "full, and each has two fresh votes");
    assert_eq!(refused(&late, LIFETIME_S / 2), 0);
}

#[test]
fn a_network_keeps_the_regions_that_it_measures_most() {
    let votes = Votes::default();
    let cast =
        |votes: &Votes, region: usize, user| votes.cast(&network(1), &format!("r{region}"), user, 30, 0);
    for region in 0..REGIONS {
        for user in ["alice", "bob"] {
            assert_eq!(cast(&votes, region, user), Cast::Taken);
        }
    }
    assert_eq!(cast(&votes, 99, "mallory"), Cast::Full);
    let polled = votes.polled(&network(1), 0).expect("known");
    assert!((0..REGIONS).all(|region| polled.tally(&format!("r{region}")).is_some()));
}

#[test]
fn networks_do_not_wait_for_each_other() {
    let votes = Votes::default();
    let set_of = |number| votes.hash(network(number)) as usize % SETS;
    let other = (2..).find(|number| set_of(*number) != set_of(1)).expect("there are many sets");
    let held = votes.set(votes.hash(network(1)));
    // Would wait for ever if there were one lock.
    assert_eq!(votes.cast(&network(other), "eu", "alice", 30, 0), Cast::Taken);
    assert_eq!(tally(&votes, other, 0).map(|tally| tally.ms), Some(30));
    drop(held);
    let known = votes.networks();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let votes = &votes;
            scope.spawn(move || {
                (0..VOTES as u32).for_each(|n| {
                    votes.cast(&network(1_000_000 + n % 4), "eu", &format!("u{thread}"), 30, n);
                })
            });
        }
    });
    assert_eq!(votes.networks(), known + 4, "each counted once, whoever came first");
}
