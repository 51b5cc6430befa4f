//! Many connections that come and go in every way: nothing stays behind.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::Arc,
    thread,
    time::Duration,
};

use berth_proto::{
    client::server_frame::Frame,
    link::{Link, LogicService, Refused},
    wire::{AttachGateway, CloseSession, ToGateway, ToLogic},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use socket2::SockRef;

use crate::support::{
    Site,
    client::{ALL, Received, Transport},
    eventually,
};

/// One connection's life, of a random kind.
fn live(site: &Site, rng: &mut SmallRng, user: &str) {
    let transport = ALL[rng.random_range(0..3)];
    let mut client = site.connect(transport);
    let ticket = site.scheduler.sign(&Site::ticket(user, "d"));
    let noise: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
    match rng.random_range(0..8) {
        0 => {}
        1 => drop(client.stream().write_all(&noise)),
        2 => client.hello(&ticket, "d"),
        3 => client.hello("rubbish", "d"),
        way => {
            client.hello(&ticket, "d");
            client.welcome();
            for id in 1..=rng.random_range(1..20) {
                client.pull(id);
            }
            match way {
                4 => drop(client.receive()),
                5 => drop(client.stream().write_all(&noise)),
                6 => client.close(1000),
                _ => drop(client.stream().shutdown(Shutdown::Both)),
            }
        }
    }
    if rng.random_bool(0.3) {
        // A reset instead of an end.
        SockRef::from(&*client.stream()).set_linger(Some(Duration::ZERO)).expect("settable");
    }
}

#[test]
fn after_a_thousand_lives_nothing_is_left() {
    let site = Arc::new(Site::start());
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            let site = Arc::clone(&site);
            thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                // Few users, so that sessions are replaced as well.
                (0..250).for_each(|round| live(&site, &mut rng, &format!("user-{}", round % 7)));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    for gauge in ["connections", "sessions", "requests_in_flight"] {
        let name = format!("berth_gateway_{gauge}");
        eventually(&name, || site.metrics.gauge(&name).abs() < f64::EPSILON);
    }
    // Logic numbers its sessions from 1 on: every one that it opened was closed, by its number or, where the client did not
    // wait for that, by the handle of its connection.
    let all = |site: &Site| {
        let state = site.logic.state();
        let number = |close: &CloseSession| match close.session_epoch {
            0 => (1..).zip(&state.opened).find(|(_, open)| open.handle == close.handle).map_or(0, |(n, _)| n),
            epoch => epoch,
        };
        let mut closed: Vec<u64> = state.closed.iter().map(number).collect();
        closed.sort_unstable();
        closed == (1..=state.opened.len() as u64).collect::<Vec<_>>()
    };
    eventually("every session is closed once", || all(&site));
    let mut last = site.login(Transport::Json, "alice", "d");
    last.pull(1);
    assert_eq!(last.response().0, 1);
}

/// A logic that blocks the worker that talks to it: a fault that must not go unnoticed.
struct Stuck;

impl LogicService for Stuck {
    fn attach(&self, _: AttachGateway, _: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        Arc::new(Self)
    }
}

impl Link<ToLogic> for Stuck {
    fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
        let opens = |m: &ToLogic| matches!(m.message, Some(berth_proto::wire::to_logic::Message::Open(_)));
        if batch.iter().any(opens) {
            thread::sleep(Duration::from_secs(7));
        }
        Ok(())
    }
}

/// A logic whose code panics in the worker that talks to it.
struct Bomb;

impl LogicService for Bomb {
    fn attach(&self, _: AttachGateway, _: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        Arc::new(Self)
    }
}

impl Link<ToLogic> for Bomb {
    fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
        let opens = |m: &ToLogic| matches!(m.message, Some(berth_proto::wire::to_logic::Message::Open(_)));
        assert!(!batch.iter().any(opens), "a fault on purpose");
        Ok(())
    }
}

#[test]
fn a_worker_that_panics_makes_the_gateway_unready_and_sends_the_others_clients_away() {
    let site = Site::start();
    let mut clients: Vec<_> =
        (0..16).map(|i| site.login(Transport::Tcp, "alice", &format!("d-{i}"))).collect();
    site.gateway.attach_logic(Arc::new(Bomb));
    // Half of the users are the new logic's.
    eventually("a worker panics", || {
        let mut client = site.connect(Transport::Tcp);
        let user = format!("user-{}", rand::random::<u32>());
        client.hello(&site.scheduler.sign(&Site::ticket(&user, "d")), "d");
        let _ = client.stream().read(&mut [0; 9]);
        site.gateway.ready().is_err()
    });
    let reason = site.gateway.ready().expect_err("not ready");
    assert!(reason.contains("panicked") && reason.contains("a fault on purpose"), "{reason}");
    eventually("schedulers hear of it", || site.scheduler.last_report().is_some_and(|report| !report.ready));
    let mut evicted = 0;
    for client in &mut clients {
        // The dead worker's sockets are closed without a word.
        match client.receive() {
            Received::Frame(Frame::Disconnect(goodbye)) => {
                assert_eq!(goodbye.code, 4001);
                evicted += 1;
            }
            Received::End => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(evicted > 0);
    // What the dead worker held is counted no more, here and by schedulers.
    drop(clients);
    for gauge in ["connections", "sessions", "requests_in_flight", "pending_handshakes"] {
        let name = format!("berth_gateway_{gauge}");
        eventually(&name, || site.metrics.gauge(&name).abs() < f64::EPSILON);
    }
    eventually("schedulers hear of it", || {
        site.scheduler.last_report().is_some_and(|report| report.connections == 0)
    });
}

#[test]
fn a_stuck_worker_is_noticed() {
    let site = Site::bare(|config| config.workers = 1);
    site.gateway.attach_scheduler(Arc::clone(&site.scheduler) as _);
    site.gateway.attach_logic(Arc::new(Stuck));
    let mut client = site.connect(Transport::Tcp);
    client.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
    eventually("the watchdog barks", || site.metrics.counter("berth_gateway_worker_stalls_total") == 1);
}
