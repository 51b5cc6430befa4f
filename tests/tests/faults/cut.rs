//! A gateway with 2,000 sessions that is cut off from logic without a word, for longer than its lease, and comes back.

use std::time::{Duration, Instant};

use berth_tests::{
    TestResult,
    device::Device,
    ensure, figure, fresh,
    raw::Transport,
    server::{Role, Server},
    wait,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    BUSY, LEASE, LEASE_TICK, LINK_BACK, LINK_LOST, all_online, at_gateway, metric, online,
    options_for_an_ended_lease, refused_send,
};

const SESSIONS: usize = 2_000;
/// Of them, so many connect elsewhere before the lease of the gateway has ended, and so many after.
const MOVED: usize = 10;
/// PROTOCOL.md: users asked for at once.
const PAGE: usize = 200;

/// A gateway announces its sessions again at 2,000 a second from each worker (here it has one), 100 at a time. It begins once
/// when the link is back and once more when it learns that it was forgotten.
const REANNOUNCED_PER_SECOND: f64 = 2_000.0;
const REANNOUNCED_AT_ONCE: f64 = 300.0;
/// To announce all of them, twice if the second beginning comes last.
const ALL_ANNOUNCED: Duration = Duration::from_secs(2);

struct Site {
    server: Server,
    users: Vec<String>,
    devices: Vec<Device>,
    watcher: Device,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start(
            options_for_an_ended_lease().links_that_can_be_cut().env("BERTH_GATEWAY__WORKERS", 1),
        )
        .await?;
        let users: Vec<String> = (0..SESSIONS).map(|_| fresh("user")).collect();
        let devices = stream::iter(&users).map(|user| at_gateway(&server, 0, user, "phone"));
        let devices = devices.buffered(32).try_collect().await?;
        let watcher = at_gateway(&server, 1, &fresh("watcher"), "d").await?;
        Ok(Self { server, users, devices, watcher })
    }

    /// The same devices connect to the other gateway.
    async fn moved(&self, users: std::ops::Range<usize>) -> anyhow::Result<Vec<Device>> {
        let mut moved = Vec::new();
        for user in &self.users[users] {
            moved.push(at_gateway(&self.server, 1, user, "phone").await?);
        }
        Ok(moved)
    }

    async fn cut(&mut self) -> anyhow::Result<Vec<Device>> {
        self.server.cut(0, Role::Logic)?;
        let cut = Instant::now();
        let mut moved = self.moved(0..MOVED).await?;
        // Those beyond have routes of one lease.
        let page = self.users[SESSIONS - PAGE..].to_vec();
        while all_online(&mut self.watcher, &page).await? {
            ensure!(cut.elapsed() < LEASE + LEASE_TICK + BUSY, "still online");
        }
        let offline = cut.elapsed();
        figure(&format!(
            "gateway cut off, lease {LEASE:?}: its users offline after {} ms",
            offline.as_millis()
        ));
        moved.extend(self.moved(MOVED..2 * MOVED).await?);
        ensure!(
            online(&mut self.watcher, &self.users[..2 * MOVED]).await? == 2 * MOVED,
            "who moved is online"
        );

        // Its sessions are kept, and told that there is nobody to ask.
        let last = SESSIONS - 1;
        wait::until_within("the gateway notices", LINK_LOST + BUSY, || async {
            Ok(self.server.readyz(Role::Gateway(0)).await?.is_err().then_some(()))
        })
        .await?;
        let to = self.users[0].clone();
        ensure!(refused_send(&mut self.devices[last], &to, "c-1").await?.code == "UNAVAILABLE");
        self.devices[last].heartbeat().await?;
        let to = self.users[last].clone();
        self.watcher.send(&to, "while-cut", "are you there?").await?;
        Ok(moved)
    }

    /// Heals the link; the highest rate at which sessions were announced, and when the last user was online again.
    async fn heal(&mut self) -> anyhow::Result<(f64, Duration)> {
        self.server.heal(0, Role::Logic)?;
        let healed = Instant::now();
        let (mut peak, mut before, mut looked): (f64, _, _) = (0.0, self.announced().await?, Instant::now());
        let mut page = 0;
        while page * PAGE < SESSIONS {
            let asked = Instant::now();
            let announced = self.announced().await?;
            // From before the first look to after the second: the true time between was shorter.
            let (count, between) = (announced - before, looked.elapsed());
            let bound = REANNOUNCED_PER_SECOND * between.as_secs_f64() + REANNOUNCED_AT_ONCE;
            ensure!(count <= bound, "{count} sessions announced in {between:?}");
            if between > Duration::from_millis(200) {
                peak = peak.max(count / between.as_secs_f64());
                (before, looked) = (announced, asked);
            }
            let users = &self.users[page * PAGE..(page + 1) * PAGE];
            if online(&mut self.watcher, users).await? == PAGE {
                page += 1;
            }
            ensure!(healed.elapsed() < LINK_BACK + ALL_ANNOUNCED + BUSY, "page {page} is not online");
        }
        Ok((peak, healed.elapsed()))
    }

    async fn announced(&self) -> anyhow::Result<f64> {
        metric(&self.server, Role::Gateway(0), "berth_gateway_sessions_reannounced_total").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_cut_off_from_logic_keeps_its_sessions_and_leaves_no_ghost() -> TestResult {
    let mut site = Site::start().await?;
    ensure!(all_online(&mut site.watcher, &site.users[..PAGE]).await?);
    let mut moved = site.cut().await?;
    let (peak, back) = site.heal().await?;
    figure(&format!(
        "gateway back after a cut: {SESSIONS} sessions online after {} ms, announced at {peak:.0}/s at most",
        back.as_millis()
    ));

    // What came while it was cut off is told without any heartbeat.
    let last = SESSIONS - 1;
    ensure!(site.devices[last].receive(1).await?[0].client_msg_id == "while-cut");
    // Who moved is where he moved to, and only there.
    for older in &mut site.devices[..2 * MOVED] {
        let ending = older.ending().await?;
        ensure!(ending.code(Transport::Tcp)? == 4504, "{ending:?}");
    }
    for newer in &mut moved {
        newer.heartbeat().await?;
    }
    for page in site.users.chunks(PAGE) {
        let page: Vec<&str> = page.iter().map(String::as_str).collect();
        let one = |user: &berth_proto::client::UserPresence| user.online && user.devices.len() == 1;
        ensure!(site.watcher.presence(&page).await?.iter().all(one), "a ghost, or somebody missing");
    }
    let kept = metric(&site.server, Role::Gateway(0), "berth_gateway_sessions").await?;
    ensure!(kept == (SESSIONS - 2 * MOVED) as f64, "{kept} sessions kept");
    for kept in &mut site.devices[2 * MOVED..] {
        kept.heartbeat().await?;
    }
    // No ghost is left behind either.
    let gone = site.users[last].clone();
    drop(site.devices.pop());
    let offline = async {
        while online(&mut site.watcher, std::slice::from_ref(&gone)).await? > 0 {}
        anyhow::Ok(())
    };
    wait::within("who leaves is offline", offline).await?
}
