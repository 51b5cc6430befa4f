//! What a fleet of separate processes survives: each role killed, frozen, slow and cut off, under load, with what clients saw
//! held against the promises (`berth_tests::history`). ARCHITECTURE.md, "What survives what", has the bounds in words.

mod crowd;
mod cut;
mod frozen;
mod guarded;
mod keys;
mod killed;
mod moved;
mod revoked;
mod schedulers;
mod slow;
mod storm;
mod two_gateways;

use std::time::Duration;

use anyhow::Context;
use berth_proto::client::{Error, request::Method};
use berth_tests::{
    device::{Device, Refused, send_to},
    ensure, figure,
    history::Report,
    raw::Transport,
    server::{Options, Role, Server},
    tokens,
};

/// The shortest lease that the configuration allows: what is tested does not depend on its length, but for the time it takes.
const LEASE: Duration = Duration::from_secs(8);

/// A lease is looked at ten times in its length, so it ends up to a tenth late.
const LEASE_TICK: Duration = Duration::from_millis(800);

/// A link that is frozen or cut without a word is given up after this: a ping after 1 s of silence, 3 s for the answer.
const LINK_LOST: Duration = Duration::from_secs(4);

/// From a peer's return to the link's: an attempt that is under way fails after 2 s + 2 s, the next begins within 0.5 s.
const LINK_BACK: Duration = Duration::from_millis(4_500);

/// A gateway answers a request that logic does not within this.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Added to each bound above: two cores run five processes, the load and other tests. What is measured is in the figures.
const BUSY: Duration = Duration::from_secs(10);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// For every reader to have everything after the last fault.
const PATIENCE: Duration = Duration::from_secs(30);

/// Roles apart with [`LEASE`].
fn options() -> Options {
    Options::default().apart().tireless_clients().env("BERTH_LOGIC__LEASE_SECONDS", LEASE.as_secs())
}

/// [`options`], where a gateway's lease is expected to end, which logic tells its operator.
fn options_for_an_ended_lease() -> Options {
    options().expect_warning("its lease ended").expect_warning("its lease had ended")
}

/// A device of a user at that gateway, by index.
async fn at_gateway(server: &Server, index: usize, user: &str, device: &str) -> anyhow::Result<Device> {
    let ticket = tokens::sign(&tokens::ticket(user, device, &format!("gw-{}", index + 1)));
    Device::connect_to(&server.at.gateways[index], Transport::Tcp, &ticket, device).await
}

/// How many of these users (at most 200) are online; asked by somebody else.
async fn online(watcher: &mut Device, users: &[String]) -> anyhow::Result<usize> {
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    // Most who call this ask until something has changed: a user may make 1,000 requests a second.
    tokio::time::sleep(POLL).await;
    Ok(watcher.presence(&users).await?.iter().filter(|user| user.online).count())
}

/// Like [`online`], of users whose routes live and die together: all of them, or none.
async fn all_online(watcher: &mut Device, users: &[String]) -> anyhow::Result<bool> {
    let count = online(watcher, users).await?;
    ensure!(count == 0 || count == users.len(), "{count} of {} online: not in one step", users.len());
    Ok(count > 0)
}

/// The error that a send is answered with; it must be one to be retried.
async fn refused_send(from: &mut Device, to: &str, client_msg_id: &str) -> anyhow::Result<Error> {
    let method: Method = send_to(to, client_msg_id, "x");
    let error = from.request(method).await.err().context("it was accepted")?.downcast::<Refused>()?.0;
    ensure!(error.retryable, "not to be retried: {error:?}");
    Ok(error)
}

/// The sum of a role's series.
async fn metric(server: &Server, role: Role, name: &str) -> anyhow::Result<f64> {
    Ok(server.scrape(role).await?.sum(name, &[]))
}

fn check_clean(what: &str, report: &Report) -> berth_tests::TestResult {
    figure(&format!("{what}: {report}"));
    ensure!(report.clean(), "{report:#?}");
    Ok(())
}
