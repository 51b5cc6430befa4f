//! kill -9 of each role under load, and its restart: one round each in the normal run, ten in the long one.

use std::time::{Duration, Instant};

use berth_proto::schedule::ScheduleRequest;
use berth_tests::{
    TestResult,
    device::{Device, schedule},
    ensure, figure, fresh,
    history::{Report, check},
    load::{Load, Shape},
    server::{Addresses, Role, Server},
    wait,
};

use crate::{
    BUSY, LINK_BACK, PATIENCE, REQUEST_DEADLINE, all_online, at_gateway, check_clean, crowd::Crowd, online,
    options_for_an_ended_lease, refused_send,
};

const SHAPE: Shape = Shape { senders: 8, receivers: 4 };
/// Clients of the SDK, half of them at each gateway.
const CROWD: usize = 16;
/// Users whose only connection was at the gateway that died, and who do not come back.
const GHOSTS: usize = 20;

/// A client whose gateway died tries it again after up to 0.5 s (PROTOCOL.md: reconnect.baseMs), and after up to 1 s more the
/// next one of its list.
const BACK: Duration = Duration::from_millis(1_500);
/// So long sessions last before the next gateway is killed: the SDK takes shorter ones for the work of a gateway that is ill, and
/// waits longer each time (`sdk/src/reconnect.rs`: as long as the wait before, and 2 s).
const SETTLED: Duration = Duration::from_secs(3);
/// The other scheduler knows the fleet: the next schedule is answered at once. The promise is a second.
const SCHEDULES_GO_ON: Duration = Duration::from_secs(1);
/// A scheduler that comes back: the gateways dial within 0.5 s, and it waits a report interval (0.5 s) for all of them.
const SCHEDULER_BACK: Duration = Duration::from_secs(1);

struct Site {
    server: Server,
    load: Load,
    crowd: Crowd,
}

/// The longest of each kind, over all rounds.
#[derive(Default)]
struct Longest(std::collections::BTreeMap<&'static str, Duration>);

impl Longest {
    fn note(&mut self, what: &'static str, took: Duration, bound: Duration) -> TestResult {
        let longest = self.0.entry(what).or_default();
        *longest = took.max(*longest);
        ensure!(took < bound + BUSY, "{what}: {took:?}, and {bound:?} is promised");
        Ok(())
    }

    fn tell(&self, rounds: u64) {
        for (what, took) in &self.0 {
            figure(&format!("{what}: at most {} ms in {rounds} rounds", took.as_millis()));
        }
    }
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start(options_for_an_ended_lease()).await?;
        let crowd = Crowd::connect(&server.at, CROWD, &fresh("crowd")).await?;
        let load = Load::start(&server.at, SHAPE, &fresh("kill"));
        Ok(Self { server, load, crowd })
    }

    async fn gateway(&mut self, round: u64, longest: &mut Longest) -> TestResult {
        let victim = (round % 2) as usize;
        let mut ghosts = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..GHOSTS {
            let user = fresh("ghost");
            theirs.push(at_gateway(&self.server, victim, &user, "d").await?);
            ghosts.push(user);
        }
        let mut watcher = at_gateway(&self.server, 1 - victim, &fresh("watcher"), "d").await?;
        ensure!(all_online(&mut watcher, &ghosts).await?);
        self.load.more_acked(100 + 67 * round % 300).await?;
        let settling = Instant::now();
        while round > 0 && settling.elapsed() < SETTLED {
            self.load.more_acked(20).await?;
        }

        self.server.kill9_role(Role::Gateway(victim));
        let back = self.crowd.all_back(&format!("gw-{}", victim + 1)).await?;
        longest.note("gateway killed: every client back at the other one", back, BACK)?;
        ensure!(online(&mut watcher, &self.crowd.users()).await? == CROWD, "who is back is online");
        self.load.more_acked(50).await?;
        all_online(&mut watcher, &ghosts).await?;

        self.server.start_role(Role::Gateway(victim)).await?;
        let started = Instant::now();
        while all_online(&mut watcher, &ghosts).await? {
            ensure!(started.elapsed() < wait::DEADLINE, "ghosts are online");
        }
        longest.note("gateway restarted: routes of its dead boot gone", started.elapsed(), LINK_BACK)?;
        self.server.ready().await
    }

    async fn logic(&mut self, round: u64, longest: &mut Longest) -> TestResult {
        let mut keepers = self.keepers().await?;
        let losses = self.crowd.losses();
        self.load.more_acked(100 + 67 * round % 300).await?;
        self.server.kill9_role(Role::Logic);
        let (user, id) = (fresh("nobody"), fresh("c"));
        for keeper in &mut keepers {
            let asked = Instant::now();
            refused_send(keeper, &user, &id).await?;
            longest.note("logic killed: a send refused", asked.elapsed(), REQUEST_DEADLINE)?;
        }
        self.server.start_role(Role::Logic).await?;
        let started = Instant::now();
        self.server.ready().await?;
        for keeper in &mut keepers {
            keeper.send(&user, &id, "x").await?;
        }
        longest.note("logic restarted: both gateways serve again", started.elapsed(), LINK_BACK)?;
        // Its routes outlived it.
        let everybody = self.crowd.users();
        ensure!(online(&mut keepers[0], &everybody).await? == everybody.len(), "somebody went offline");
        ensure!(self.crowd.losses() == losses, "a connection was lost");
        self.load.more_acked(50).await
    }

    async fn scheduler(&mut self, round: u64, longest: &mut Longest) -> TestResult {
        let victim = (round % 2) as usize;
        let others = at_scheduler(&self.server.at, 1 - victim);
        let mut keepers = self.keepers().await?;
        let losses = self.crowd.losses();
        self.load.moved(&others);
        self.load.more_acked(50).await?;
        self.server.kill9_role(Role::Scheduler(victim));
        for _ in 0..10 {
            let asked = Instant::now();
            schedules(&others).await?;
            longest.note(
                "scheduler killed: a schedule from the other one",
                asked.elapsed(),
                SCHEDULES_GO_ON,
            )?;
        }
        self.load.more_acked(100).await?;

        self.server.start_role(Role::Scheduler(victim)).await?;
        let started = Instant::now();
        self.server.ready().await?;
        longest.note(
            "scheduler restarted: knows the fleet and is ready",
            started.elapsed(),
            SCHEDULER_BACK,
        )?;
        schedules(&at_scheduler(&self.server.at, victim)).await?;
        for keeper in &mut keepers {
            keeper.heartbeat().await?;
        }
        ensure!(self.crowd.losses() == losses, "a connection was lost");
        Ok(())
    }

    /// A device at each gateway that nothing may close.
    async fn keepers(&self) -> anyhow::Result<[Device; 2]> {
        let first = at_gateway(&self.server, 0, &fresh("keeper"), "d").await?;
        Ok([first, at_gateway(&self.server, 1, &fresh("keeper"), "d").await?])
    }

    async fn finish(self) -> anyhow::Result<(Server, Crowd, Report)> {
        self.load.more_acked(100).await?;
        let events = self.load.finish(PATIENCE).await?;
        Ok((self.server, self.crowd, check(&events)))
    }
}

fn at_scheduler(at: &Addresses, index: usize) -> Addresses {
    Addresses { scheduler: at.schedulers[index].clone(), ..at.clone() }
}

async fn schedules(at: &Addresses) -> TestResult {
    let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
    let answer = schedule(at, &fresh("user"), &request).await?;
    ensure!(!answer.endpoints.is_empty(), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_killed_once_under_load_loses_nothing() -> TestResult {
    let (mut site, mut longest) = (Site::start().await?, Longest::default());
    site.gateway(0, &mut longest).await?;
    site.logic(0, &mut longest).await?;
    site.scheduler(0, &mut longest).await?;
    let (mut server, crowd, report) = site.finish().await?;
    longest.tell(1);
    check_clean("each role killed -9 once", &report)?;

    // Without any scheduler, clients go on along the list they have.
    server.kill9_role(Role::Scheduler(0));
    server.kill9_role(Role::Scheduler(1));
    server.kill9_role(Role::Gateway(0));
    crowd.all_back("gw-1").await?;
    crowd.close().await
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Gateway,
    Logic,
    Scheduler,
}

async fn ten_times(victim: Victim) -> TestResult {
    const ROUNDS: u64 = 10;
    let (mut site, mut longest) = (Site::start().await?, Longest::default());
    for round in 0..ROUNDS {
        match victim {
            Victim::Gateway => site.gateway(round, &mut longest).await?,
            Victim::Logic => site.logic(round, &mut longest).await?,
            Victim::Scheduler => site.scheduler(round, &mut longest).await?,
        }
    }
    let (_server, crowd, report) = site.finish().await?;
    longest.tell(ROUNDS);
    check_clean(&format!("{victim:?} killed -9 {ROUNDS} times under load"), &report)?;
    crowd.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn gateways_killed_ten_times_under_load_lose_nothing() -> TestResult {
    ten_times(Victim::Gateway).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn logic_killed_ten_times_under_load_loses_nothing() -> TestResult {
    ten_times(Victim::Logic).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn schedulers_killed_ten_times_under_load_lose_nothing() -> TestResult {
    ten_times(Victim::Scheduler).await
}
