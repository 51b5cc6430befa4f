//! One process's share of a run: its clients, its load, its stages.

use std::{net::ToSocketAddrs, ops::Range, time::Duration};

use anyhow::{Context, anyhow, ensure};
use serde_json::json;

use super::{
    arrive::{WINDOW, authority},
    asking::{Asking, Hold},
    conductor::{Conductor, Progress},
    exchange::{self, Exchange},
    fleet::{Fleet, Plan, Work},
    group::{self, Group},
    http::{self, Pool},
    options::{self, What},
    pace::{Nanos, nanos},
    system,
    tally::{Generator, Marks, Tally},
    workers::{Place, share},
};
use crate::{compose, exit::Failure};

/// Messages a second to a group where none is said.
const GROUP_RATE: f64 = 2.0;

/// Messages a second of `push` where none is said.
const PUSH_RATE: f64 = 1_000.0;

/// How long the load lasts where it is not said.
const DURATION: Duration = Duration::from_secs(10);

/// The group of a run.
fn group_id(run: &str) -> String {
    format!("bench-{run}")
}

/// User `nth` of a run: `s` sends, `r` receives.
fn user(run: &str, kind: char, nth: usize) -> String {
    format!("bench-{run}-{kind}{nth}")
}

/// Makes what has to be there before anybody connects: the group.
///
/// # Errors
/// When logic does not do it.
pub fn prepare(what: &What, run: &str) -> Result<(), Failure> {
    let What::Group(group) = what else { return Ok(()) };
    let made = make_group(group, what.connections(), run);
    made.map_err(|error| Failure::Start(error.context(format!("making the group over {}", group.logic))))
}

fn make_group(group: &options::Group, members: usize, run: &str) -> anyhow::Result<()> {
    let host = authority(&group.logic);
    let address = resolve(&group.logic)?;
    let users = (0..members).map(|nth| user(run, 'r', nth)).chain([user(run, 's', 0)]);
    let body = json!({ "members": users.collect::<Vec<_>>() }).to_string();
    let path = format!("/v1/groups/{}", group_id(run));
    let bytes = http::request("PUT", host, &path, Some(&group.service_key), &body);
    let (status, body) = http::call(address, &bytes)?;
    let hint = match status {
        401 | 403 => "; give --service-key or BERTH_AUTH__SERVICE_KEY",
        _ => "",
    };
    ensure!(status == 200, "PUT {path}: {status} {}{hint}", String::from_utf8_lossy(&body));
    Ok(())
}

/// The address of an `http://` URL.
///
/// # Errors
/// When it is none, or its host is unknown.
pub fn resolve(url: &str) -> anyhow::Result<std::net::SocketAddr> {
    ensure!(url.starts_with("http://"), "{url:?} is no http:// URL");
    let authority = authority(url);
    let with_port = if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let mut found = with_port.to_socket_addrs().with_context(|| format!("looking up {with_port}"))?;
    found.next().ok_or_else(|| anyhow!("{with_port} has no address"))
}

/// Runs one process's share to its end.
///
/// # Errors
/// When the scheduler's URL is none, or there is no epoll.
pub fn drive(what: &What, place: &Place, conductor: &mut dyn Conductor) -> anyhow::Result<Tally> {
    let common = what.common();
    let to = resolve(&common.access.scheduler)?;
    let receivers = share(what.connections(), place.index, place.of);
    let senders = match what {
        What::Group(_) => 0..usize::from(place.index == 0),
        _ => share(what.senders(), place.index, place.of),
    };
    let plain_http = matches!(what, What::Schedule(_));
    // One for everybody who may ask at a time: a schedule's latency is the server's, not of a queue in here.
    let lanes = if plain_http { receivers.len() } else { WINDOW.min(receivers.len() + senders.len()) };
    let pool = Pool::new(to, authority(&common.access.scheduler), lanes);
    let users = match what {
        What::Schedule(_) => Vec::new(),
        _ => {
            let senders = senders.clone().map(|nth| user(&place.run, 's', nth));
            senders.chain(receivers.clone().map(|nth| user(&place.run, 'r', nth))).collect()
        }
    };
    let rate = common.rate.map(|rate| part(rate, receivers.len(), what.connections()));
    let plan = Plan {
        transport: common.transport,
        users,
        first: receivers.start + senders.start,
        jwt_secret: common.access.jwt_secret().map(str::to_owned),
        heartbeat: common.heartbeat.map(|interval| nanos(interval.as_secs_f64()).max(1_000_000)),
        reconnect: common.reconnect,
        connects_per_second: rate.filter(|_| matches!(what, What::Connect(_))),
    };
    let mut work = work(what, place, &plan, &senders);
    let mut fleet = Fleet::new(plan, pool)?;
    conductor.attach(fleet.waker());
    let mut marks = Marks::default();
    stages(what, &mut fleet, &mut *work, conductor, &mut marks)?;
    let generator = Generator::own(system::usage("self").unwrap_or_default().0, &marks);
    let mut tally = fleet.finish();
    work.finish(&mut tally);
    tally.generator = generator;
    Ok(tally)
}

/// Of `whole`, the part of `here` out of `all`.
fn part(whole: f64, here: usize, all: usize) -> f64 {
    whole * here as f64 / all.max(1) as f64
}

/// What `senders` out of `all` keep in flight of `whole`: no more than 16 each, if all together can.
fn in_flight(whole: usize, senders: &Range<usize>, all: usize) -> usize {
    whole * senders.end / all.max(1) - whole * senders.start / all.max(1)
}

fn work(what: &What, place: &Place, plan: &Plan, senders: &Range<usize>) -> Box<dyn Work> {
    let common = what.common();
    let duration = |default: Duration| nanos(common.duration.unwrap_or(default).as_secs_f64());
    // A process without senders sends nothing: the others have its share.
    let rate = |rate: Option<f64>| {
        rate.filter(|_| !senders.is_empty()).map(|rate| part(rate, senders.len(), what.senders()))
    };
    let run = format!("{}-{}", place.run, place.index);
    let seed = rand::random();
    match what {
        What::Connect(_) => {
            let hold = common.hold.or(common.duration).unwrap_or(DURATION);
            Box::new(Hold::new(nanos(hold.as_secs_f64())))
        }
        What::Push(push) => {
            let shape = exchange::Shape {
                run,
                senders: senders.len(),
                rate: rate(common.rate.or(Some(PUSH_RATE))),
                in_flight: 0,
                size: push.size,
                duration: duration(DURATION),
                pull: push.pull,
            };
            Box::new(Exchange::new(shape, plan.users.len(), seed))
        }
        What::Send(send) => {
            let shape = exchange::Shape {
                run,
                senders: senders.len(),
                rate: rate(common.rate),
                in_flight: in_flight(send.in_flight, senders, what.senders()),
                size: send.size,
                duration: duration(DURATION),
                pull: true,
            };
            Box::new(Exchange::new(shape, plan.users.len(), seed))
        }
        What::Group(group) => {
            let shape = group::Shape {
                run,
                group_id: group_id(&place.run),
                sends: place.index == 0,
                rate: common.rate.unwrap_or(GROUP_RATE),
                size: group.size,
                duration: duration(DURATION),
            };
            Box::new(Group::new(shape, plan.users.len()))
        }
        What::Schedule(schedule) => {
            let users = share(schedule.users.max(place.of), place.index, place.of);
            let users = users.map(|nth| user(&place.run, 'u', nth)).collect();
            let lanes = share(what.connections(), place.index, place.of).len();
            let rate = common.rate.map(|rate| part(rate, lanes, what.connections()));
            let secret = plan.jwt_secret.as_ref();
            let sign = secret.map(|secret| {
                move |user: &str| compose::sign_token(secret, user, Duration::from_secs(24 * 3_600))
            });
            let sign = sign.as_ref().map(|sign| sign as &dyn Fn(&str) -> String);
            Box::new(Asking::new(users, sign, lanes, rate, duration(DURATION), plan.transport))
        }
    }
}

/// The stages in order; ends early when told. Notes what this process had used when each began.
fn stages(
    what: &What,
    fleet: &mut Fleet,
    work: &mut dyn Work,
    conductor: &mut dyn Conductor,
    marks: &mut Marks,
) -> anyhow::Result<()> {
    let common = what.common();
    if common.schedule_first && fleet.len() > 0 {
        begin(fleet, work, conductor, marks, "schedule")?;
        fleet.begin(false);
        until(fleet, work, conductor, None, |fleet, _, _| fleet.outside() == 0)?;
    }
    if fleet.len() > 0 {
        begin(fleet, work, conductor, marks, "connect")?;
        fleet.begin(true);
        until(fleet, work, conductor, None, |fleet, _, _| fleet.outside() == 0)?;
    }
    if !matches!(what, What::Connect(_)) {
        let at = begin(fleet, work, conductor, marks, "settle")?;
        let held = at + common.hold.map_or(0, |hold| nanos(hold.as_secs_f64()));
        until(fleet, work, conductor, Some(held), |_, _, now| now >= held)?;
        until(fleet, work, conductor, None, |fleet, work, now| work.prepared(fleet, now))?;
    }
    let at = begin(fleet, work, conductor, marks, "load")?;
    fleet.forget();
    work.start(fleet, at);
    until(fleet, work, conductor, None, |_, work, now| work.done(now))?;
    if conductor.stopped() {
        work.stop();
    }
    begin(fleet, work, conductor, marks, "end")?;
    Ok(())
}

/// Arrives at a stage and goes around until it begins; gives its time.
fn begin(
    fleet: &mut Fleet,
    work: &mut dyn Work,
    conductor: &mut dyn Conductor,
    marks: &mut Marks,
    stage: &'static str,
) -> anyhow::Result<Nanos> {
    conductor.arrive(stage);
    marks.push((stage, system::usage("self").unwrap_or_default().0.cpu));
    loop {
        if let Some(at) = conductor.go(&fleet.clock) {
            return Ok(at);
        }
        if conductor.stopped() {
            return Ok(fleet.clock.now());
        }
        fleet.turn(work, None)?;
    }
}

/// Goes around until something holds, or the run is to end early.
fn until(
    fleet: &mut Fleet,
    work: &mut dyn Work,
    conductor: &mut dyn Conductor,
    at: Option<Nanos>,
    mut holds: impl FnMut(&mut Fleet, &mut dyn Work, Nanos) -> bool,
) -> anyhow::Result<()> {
    while !conductor.stopped() {
        let now = fleet.clock.now();
        if holds(fleet, work, now) {
            return Ok(());
        }
        fleet.turn(work, at)?;
        let (live, of) = (fleet.live, fleet.len());
        conductor.progress(&|| Progress { live, of, text: work.progress() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn processes_share_out_all_that_is_in_flight(whole in 1..2_000usize, of in 1..16usize) {
            let all = whole.div_ceil(berth_proto::limits::IN_FLIGHT);
            let (mut sum, mut rates) = (0, 0.0);
            for index in 0..of {
                let senders = share(all, index, of);
                let here = in_flight(whole, &senders, all);
                prop_assert!(here <= senders.len() * berth_proto::limits::IN_FLIGHT);
                prop_assert!(senders.is_empty() || here > 0, "{senders:?} of {all}");
                (sum, rates) = (sum + here, rates + part(1.0, senders.len(), all));
            }
            prop_assert_eq!(sum, whole);
            prop_assert!((rates - 1.0f64).abs() < 1e-9);
        }
    }
}
