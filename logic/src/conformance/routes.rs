//! The suite of [`Routes`].

use std::sync::Arc;

use super::{LEASE_MS, NOW, Place};
use crate::routes::{DEVICES, GatewayKey, LATE_MS, Opened, Opening, Route, Routes};

pub(super) fn gateway(id: &str, boot: u64) -> GatewayKey {
    GatewayKey { id: id.to_owned(), boot }
}

pub(super) fn opening(user: &str, device: &str, gateway: &GatewayKey, handle: u64) -> Opening {
    Opening {
        user: user.to_owned(),
        device: device.to_owned(),
        platform: "ios".to_owned(),
        gateway: gateway.clone(),
        handle,
        announced: 0,
        said_ms: 0,
        auth_issued_at_ms: NOW,
    }
}

pub(super) async fn open(routes: &Arc<dyn Routes>, opening: Opening, now_ms: i64) -> Opened {
    routes.register(vec![opening], now_ms).await.expect("registers").remove(0)
}

pub(super) async fn epoch(routes: &Arc<dyn Routes>, opening: Opening, now_ms: i64) -> u64 {
    match open(routes, opening, now_ms).await {
        Opened::Registered { epoch, .. } => epoch,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn live(routes: &Arc<dyn Routes>, user: &str) -> Vec<Route> {
    let mut found = routes.lookup(&[user.to_owned()]).await.expect("reads").remove(0);
    check_located(routes, user, &found).await;
    found.sort_by(|a, b| a.device.cmp(&b.device));
    found
}

/// Wherever routes are looked up, the short way says the same.
async fn check_located(routes: &Arc<dyn Routes>, user: &str, live: &[Route]) {
    let found = routes.locate(&["nobody", user, user]).await.expect("reads");
    for asked in [1, 2] {
        let places = found.connections.iter().filter(|one| one.user == asked);
        let mut located: Vec<_> = places.map(|one| (&found.gateways[one.gateway], one.handle)).collect();
        let mut expected: Vec<_> = live.iter().map(|route| (&route.gateway, route.handle)).collect();
        located.sort();
        expected.sort();
        assert_eq!(located, expected);
    }
    assert_eq!(found.connections.len(), 2 * live.len(), "and nobody else");
}

pub(super) async fn check_register_and_replace(place: &dyn Place) {
    let routes = place.routes(NOW);
    let (one, two) = (gateway("g1", 1), gateway("g2", 1));
    let openings =
        vec![opening("alice", "d1", &one, 1), opening("bob", "d1", &one, 2), opening("alice", "d1", &two, 3)];
    let opened = routes.register(openings, NOW).await.expect("registers");
    let [
        Opened::Registered { epoch: first, replaced: None },
        Opened::Registered { replaced: None, .. },
        Opened::Registered { epoch: second, replaced: Some(old) },
    ] = opened.as_slice()
    else {
        panic!("{opened:?}")
    };
    assert!(second > first, "epochs grow, also within a batch");
    assert_eq!((old.gateway.clone(), old.handle, old.epoch), (one.clone(), 1, *first));
    epoch(&routes, opening("alice", "d2", &one, 4), NOW).await;
    let found = live(&routes, "alice").await;
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].device.as_str(), found[0].handle, &found[0].gateway), ("d1", 3, &two));
    assert_eq!((found[1].device.as_str(), found[1].platform.as_str()), ("d2", "ios"));
    let users = ["nobody", "bob"].map(str::to_owned);
    let found = routes.lookup(&users).await.expect("reads");
    assert_eq!((found[0].len(), found[1].len()), (0, 1), "in the order asked");
    // The same connection asked again because its answer was lost: it replaces nobody.
    let again = open(&routes, opening("alice", "d2", &one, 4), NOW).await;
    assert!(matches!(again, Opened::Registered { replaced: None, .. }), "{again:?}");
}

pub(super) async fn check_a_late_close_touches_nothing(place: &dyn Place) {
    let routes = place.routes(NOW);
    let one = gateway("g1", 1);
    let first = epoch(&routes, opening("alice", "d", &one, 1), NOW).await;
    let second = epoch(&routes, opening("alice", "d", &one, 2), NOW).await;
    assert!(!routes.close("alice", "d", first).await.expect("closes"));
    assert_eq!(live(&routes, "alice").await.len(), 1);
    assert!(!routes.close("alice", "other", second).await.expect("closes"));
    assert!(!routes.close("nobody", "d", second).await.expect("closes"));
    assert!(routes.close("alice", "d", second).await.expect("closes"));
    assert!(live(&routes, "alice").await.is_empty());
    assert!(!routes.close("alice", "d", second).await.expect("closes"));
    assert!(epoch(&routes, opening("alice", "d", &one, 3), NOW).await > second, "also after a close");
}

pub(super) async fn check_a_late_opening_takes_nobodys_place(place: &dyn Place) {
    let routes = place.routes(NOW);
    let (one, two) = (gateway("g1", 1), gateway("g2", 1));
    let said =
        |gateway: &GatewayKey, handle, said_ms| Opening { said_ms, ..opening("alice", "d", gateway, handle) };
    let late = NOW + LATE_MS + 100;
    let first = epoch(&routes, said(&two, 1, NOW + 50), NOW + 60).await;
    assert_eq!(open(&routes, said(&one, 2, NOW), late).await, Opened::Stale, "said earlier, came later");
    assert_eq!(live(&routes, "alice").await[0].epoch, first);
    let other = Opening { device: "d2".to_owned(), ..said(&one, 3, NOW) };
    assert!(epoch(&routes, other, late).await > first, "another device is not concerned");

    // What the gateway announces again keeps its place, and its time.
    let again = Opening { announced: first, ..said(&two, 1, 0) };
    assert_eq!(open(&routes, again, late).await, Opened::Registered { epoch: first, replaced: None });
    assert_eq!(open(&routes, said(&one, 4, NOW), late).await, Opened::Stale);

    // Nothing else is refused: what is not late, what was said later, what nobody knows the time of.
    let mut newest = first;
    for (handle, said_ms, now) in
        [(5, NOW + 49, NOW + 49 + LATE_MS), (6, NOW + 50, late), (7, 0, late), (8, NOW, late)]
    {
        let opened = open(&routes, said(&one, handle, said_ms), now).await;
        let Opened::Registered { epoch, replaced: Some(old) } = opened else {
            panic!("{handle}: {opened:?}")
        };
        assert_eq!(old.epoch, newest);
        newest = epoch;
    }
    // Before a clock went back: nobody is locked out until it comes there again.
    epoch(&routes, said(&one, 9, NOW + 1_000_000), NOW + 1_000_000).await;
    assert!(matches!(open(&routes, said(&two, 10, NOW), late).await, Opened::Registered { .. }));
}

pub(super) async fn check_announcing_again(place: &dyn Place) {
    let routes = place.routes(NOW);
    let (one, two) = (gateway("g1", 1), gateway("g2", 1));
    let announce = |gateway: &GatewayKey, handle, announced| Opening {
        announced,
        ..opening("alice", "d", gateway, handle)
    };
    let first = epoch(&routes, opening("alice", "d", &one, 1), NOW).await;
    let same = open(&routes, announce(&one, 1, first), NOW).await;
    assert_eq!(same, Opened::Registered { epoch: first, replaced: None }, "nothing changes");
    let second = epoch(&routes, opening("alice", "d", &two, 2), NOW).await;
    assert_eq!(
        open(&routes, announce(&one, 1, first), NOW).await,
        Opened::Stale,
        "an older one loses, however late"
    );
    assert_eq!(live(&routes, "alice").await[0].epoch, second);
    // An epoch that this table never gave (it was lost with unsynced writes) stays below all later ones.
    let foreign = second + 1_000_000;
    let opened = open(&routes, announce(&one, 3, foreign), NOW).await;
    assert!(matches!(opened, Opened::Registered { epoch, replaced: Some(_) } if epoch == foreign));
    assert!(epoch(&routes, opening("bob", "d", &one, 4), NOW).await > foreign);
}

pub(super) async fn check_a_lease_that_ends(place: &dyn Place) {
    let routes = place.routes(NOW);
    let (one, two) = (gateway("g1", 1), gateway("g2", 1));
    for gateway in [&one, &two] {
        routes.attach(gateway, NOW).await.expect("attaches");
        assert!(!routes.renew(gateway, 1, NOW).await.expect("renews"), "a new boot has nothing to announce");
    }
    let mut epochs = Vec::new();
    for n in 0..20 {
        epochs.push(epoch(&routes, opening(&format!("u{n}"), "d", &one, n), NOW).await);
    }
    epoch(&routes, opening("u0", "d2", &two, 1), NOW).await;
    assert!(!routes.renew(&two, 1, NOW + LEASE_MS - 1).await.expect("renews"));
    assert!(routes.expire(NOW + LEASE_MS - 1).await.expect("expires").is_empty(), "not before its time");
    assert_eq!(routes.expire(NOW + LEASE_MS).await.expect("expires"), std::slice::from_ref(&one));
    assert!(routes.expire(NOW + LEASE_MS).await.expect("expires").is_empty(), "once");
    assert_eq!(live(&routes, "u0").await.len(), 1, "the other gateway's route lives");
    for n in 1..20 {
        assert!(live(&routes, &format!("u{n}")).await.is_empty());
    }
    // It was only cut off. A session opened before it renews does not hide that it was forgotten.
    let now = NOW + LEASE_MS + 1;
    epoch(&routes, opening("fresh", "d", &one, 99), now).await;
    assert!(live(&routes, "u1").await.is_empty(), "ended routes do not come back by themselves");
    assert!(routes.renew(&one, 1, now).await.expect("renews"), "forgotten");
    assert!(
        routes.renew(&one, 1, now).await.expect("renews"),
        "said until it announces: an answer can be lost"
    );
    let again = Opening { announced: epochs[1], ..opening("u1", "d", &one, 1) };
    assert_eq!(epoch(&routes, again, now).await, epochs[1]);
    assert!(!routes.renew(&one, 1, now).await.expect("renews"), "it announces");
    let bare = gateway("g3", 1);
    assert!(routes.renew(&bare, 5, now).await.expect("renews"), "never seen, with sessions");
    assert!(!routes.renew(&bare, 0, now).await.expect("renews"), "it has none any more");
    assert!(!routes.renew(&bare, 1, now).await.expect("renews"), "new ones were opened here");
    assert_eq!(live(&routes, "u1").await.len(), 1);
}

pub(super) async fn check_reopening_gives_a_lease_of_grace(place: &dyn Place) {
    let routes = place.routes(NOW);
    let one = gateway("g1", 1);
    routes.attach(&one, NOW).await.expect("attaches");
    let mut highest = epoch(&routes, opening("alice", "d", &one, 1), NOW).await;
    drop(routes);
    let later = NOW + 100 * LEASE_MS;
    let routes = place.routes(later);
    assert!(routes.expire(later + LEASE_MS - 1).await.expect("expires").is_empty(), "nobody could renew");
    assert_eq!(live(&routes, "alice").await.len(), 1);
    assert!(!routes.renew(&one, 1, later + 1).await.expect("renews"), "not forgotten");
    for n in 0..10_050 {
        let next = epoch(&routes, opening("bob", "d", &one, n), later).await;
        assert!(next > highest, "above every epoch before the restart");
        highest = next;
    }
    assert_eq!(routes.expire(later + 2 * LEASE_MS).await.expect("expires"), std::slice::from_ref(&one));
    drop(routes);
    let routes = place.routes(later);
    assert!(live(&routes, "alice").await.is_empty(), "ended stays ended");
    assert!(
        routes.renew(&one, 1, later).await.expect("renews"),
        "and the boot is told, also by the next process"
    );
}

pub(super) async fn check_a_new_boot_ends_the_old_one(place: &dyn Place) {
    let routes = place.routes(NOW);
    let (old, new, other) = (gateway("g1", 1), gateway("g1", 2), gateway("g2", 1));
    routes.attach(&old, NOW).await.expect("attaches");
    epoch(&routes, opening("alice", "d", &old, 1), NOW).await;
    epoch(&routes, opening("bob", "d", &other, 1), NOW).await;
    routes.attach(&new, NOW).await.expect("attaches");
    assert!(live(&routes, "alice").await.is_empty());
    assert_eq!(live(&routes, "bob").await.len(), 1);
    epoch(&routes, opening("alice", "d", &new, 1), NOW).await;
    assert_eq!(live(&routes, "alice").await[0].gateway, new);
}

pub(super) async fn check_late_words_of_a_dead_boot(place: &dyn Place) {
    let (old, older, new) = (gateway("g1", 2), gateway("g1", 1), gateway("g1", 3));
    let routes = place.routes(NOW);
    for boot in [&older, &old] {
        routes.attach(boot, NOW).await.expect("attaches");
    }
    let known = epoch(&routes, opening("alice", "d", &old, 1), NOW).await;
    // The lease of one ended before, the other's lives.
    routes.attach(&new, NOW).await.expect("attaches");
    let there = epoch(&routes, opening("alice", "d", &new, 2), NOW).await;
    drop(routes);
    let routes = place.routes(NOW);
    for boot in [&older, &old] {
        assert_eq!(open(&routes, opening("alice", "d", boot, 3), NOW).await, Opened::Superseded);
        let again = Opening { announced: known, ..opening("bob", "d", boot, 4) };
        assert_eq!(open(&routes, again, NOW).await, Opened::Superseded);
        assert!(!routes.renew(boot, 1, NOW).await.expect("renews"), "nobody is there to announce anything");
    }
    assert!(live(&routes, "bob").await.is_empty(), "no ghost");
    let found = live(&routes, "alice").await;
    assert_eq!((found.len(), found[0].epoch), (1, there), "nobody's place is taken");
    // Two processes with one id: whichever attached last.
    routes.attach(&old, NOW).await.expect("attaches");
    assert!(live(&routes, "alice").await.is_empty());
    epoch(&routes, opening("alice", "d", &old, 5), NOW).await;
    assert_eq!(open(&routes, opening("alice", "d", &new, 6), NOW).await, Opened::Superseded);
    assert_eq!(live(&routes, "alice").await[0].gateway, old);
    // Once that one is gone, the other serves again, also after a restart between: it is told to announce its sessions.
    drop(routes);
    let routes = place.routes(NOW);
    let later = NOW + LEASE_MS;
    assert!(!routes.renew(&new, 1, later - 1).await.expect("renews"), "the last one still lives");
    assert_eq!(routes.expire(later).await.expect("expires"), std::slice::from_ref(&old));
    assert_eq!(open(&routes, opening("bob", "d", &new, 7), later).await, Opened::Superseded, "a late word");
    assert!(routes.renew(&new, 1, later).await.expect("renews"), "forgotten");
    let again = Opening { announced: there, ..opening("alice", "d", &new, 2) };
    assert_eq!(epoch(&routes, again, later).await, there);
    assert!(!routes.renew(&new, 1, later).await.expect("renews"), "it announces");
    assert_eq!(live(&routes, "alice").await[0].gateway, new);
    assert!(!routes.renew(&old, 1, later).await.expect("renews"), "and has the id for itself");
    assert_eq!(open(&routes, opening("alice", "d", &old, 8), later).await, Opened::Superseded);
}

pub(super) async fn check_too_many_devices(place: &dyn Place) {
    let routes = place.routes(NOW);
    let one = gateway("g1", 1);
    for n in 0..DEVICES as u64 {
        epoch(&routes, opening("alice", &format!("d{n}"), &one, n), NOW).await;
    }
    assert_eq!(
        open(&routes, opening("alice", "more", &one, 900), NOW).await,
        Opened::TooManyDevices(DEVICES)
    );
    epoch(&routes, opening("alice", "d3", &one, 901), NOW).await;
    epoch(&routes, opening("bob", "more", &one, 902), NOW).await;
    let found = live(&routes, "alice").await;
    assert_eq!(found.len(), DEVICES);
    let closed = found.iter().find(|route| route.device == "d5").expect("there");
    assert!(routes.close("alice", "d5", closed.epoch).await.expect("closes"));
    epoch(&routes, opening("alice", "more", &one, 903), NOW).await;
}
