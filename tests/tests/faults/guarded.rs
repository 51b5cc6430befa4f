//! A guard's missing data: the one gateway of a gray rule's pool stands still (SIGSTOP), which is a failure of the pool, not of nobody.

use std::time::{Duration, Instant};

use berth_proto::schedule::{Reason, ScheduleRequest};
use berth_tests::{
    TestResult,
    device::schedule,
    ensure, figure, fresh, http,
    server::{Role, SCHEDULERS, Server},
    tokens::ADMIN_KEY,
    wait,
};

use crate::{BUSY, PATIENCE, crowd::Crowd, metric, options_for_an_ended_lease};

/// Everybody goes by the rule.
const POLICY: &str = "version = 1\n[[gray]]\nid = \"new\"\npool = \"canary\"\npercent = 100.0\n\
    [gray.guard]\nconnect_failures = 0.5\nwindow_seconds = 5\n";

/// The rule's window, and until a silent gateway counts as gone.
const STOPPED_AFTER: Duration = Duration::from_secs(5 + 2);

/// The clients of the pool.
const CLIENTS: usize = 10;

/// gw-1 is of pool stable, gw-2 of pool canary.
async fn start() -> anyhow::Result<Server> {
    let options = options_for_an_ended_lease()
        .heartbeat(2_000, 5_000)
        .policy(POLICY)
        .expect_warning("a gray rule's guard stops it");
    let mut server = Server::prepare(options)?;
    server.start_role(Role::Logic).await?;
    for index in 0..SCHEDULERS {
        server.start_role(Role::Scheduler(index)).await?;
    }
    server.start_role(Role::Gateway(0)).await?;
    server.env("BERTH_GATEWAY__POOL", "canary");
    server.start_role(Role::Gateway(1)).await?;
    server.ready().await?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_whose_gateway_freezes_is_stopped_for_want_of_data_and_its_users_are_elsewhere() -> TestResult
{
    let server = start().await?;
    let crowd = Crowd::connect(&server.at, CLIENTS, &fresh("canary")).await?;
    ensure!(crowd.at("gw-2") == CLIENTS, "{} of {CLIENTS} at the canary", crowd.at("gw-2"));

    server.freeze(Role::Gateway(1))?;
    let frozen = Instant::now();
    wait::until_within("every scheduler has stopped the rule", STOPPED_AFTER + BUSY, || async {
        for index in 0..SCHEDULERS {
            if metric(&server, Role::Scheduler(index), "berth_scheduler_rule_stopped").await? != 1.0 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    let stopped = frozen.elapsed();
    let url = format!("{}/admin/v1/policy", server.admin_of(Role::Scheduler(0)));
    let told: serde_json::Value = http::get(&url, Some(ADMIN_KEY)).await?.json()?;
    let reason = told["rules"][0]["stopped"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("no gateway of the pool reports"), "{told}");
    crowd.all_back_within("gw-2", 3 * PATIENCE).await?;
    figure(&format!(
        "canary frozen: its rule stopped after {} ms, and its {CLIENTS} clients connected elsewhere after {} ms",
        stopped.as_millis(),
        frozen.elapsed().as_millis()
    ));

    server.thaw(Role::Gateway(1))?;
    server.ready().await?;
    let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
    let decided = schedule(&server.at, &fresh("user"), &request).await?.decision;
    ensure!((decided.reason, decided.pool.as_str()) == (Reason::Default, "stable"), "{decided:?}");
    ensure!(crowd.at("gw-1") == CLIENTS, "nobody goes back");
    crowd.close().await
}
