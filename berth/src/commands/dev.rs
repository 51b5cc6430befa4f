//! `berth dev`: everything in one process.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::{
    compose::{
        self,
        dev::{Addresses, Dev},
    },
    config::{Effective, Layers},
    exit::Failure,
    lifecycle::{Asked, Signals},
    output, telemetry,
};

/// A start that takes longer than this has gone wrong: replay of a full queue is seconds.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How often readiness is looked at while starting.
const READY_POLL: Duration = Duration::from_millis(20);

/// Arguments of `berth dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where keys, queue and messages are kept.
    #[arg(long, default_value = "berth-data")]
    data_dir: PathBuf,
    /// Policy file (TOML); read again when it changes, and on SIGHUP.
    #[arg(long)]
    policy: Option<String>,
    /// Address database (MMDB) that says where clients are; read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "FILE.mmdb")]
    geoip: Option<String>,
    /// Configuration file (TOML); BERTH_SECTION__KEY variables and flags are laid over it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Clients' HTTP: where to connect. Port 0 takes a free one.
    #[arg(long)]
    scheduler_listen: Option<SocketAddr>,
    /// Clients' WebSocket and TCP.
    #[arg(long)]
    gateway_listen: Option<SocketAddr>,
    /// The back end's HTTP.
    #[arg(long)]
    logic_listen: Option<SocketAddr>,
    /// The operator's HTTP: /readyz, /metrics.
    #[arg(long)]
    admin_listen: Option<SocketAddr>,
    /// Print addresses, keys and tokens as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Runs until a signal.
pub fn run(args: Args) -> Result<(), Failure> {
    let Effective { config, .. } = Layers::defaults()
        .file(args.config.as_deref())
        .environment(std::env::vars_os())
        .flag("--policy", "scheduler.policy_file", args.policy.as_ref())
        .flag("--geoip", "scheduler.geoip", args.geoip.as_ref())
        .flag("--scheduler-listen", "scheduler.listen", args.scheduler_listen)
        .flag("--gateway-listen", "gateway.listen", args.gateway_listen)
        .flag("--logic-listen", "logic.listen", args.logic_listen)
        .flag("--admin-listen", "admin.listen", args.admin_listen)
        .finish()
        .map_err(|problem| Failure::Configuration(problem.into()))?;
    if !config.auth.jwks_file.is_empty() {
        return Err(Failure::Configuration(anyhow!(
            "auth.jwks_file = {:?}: `berth dev` signs its users' tokens itself, with auth.jwt_secret",
            config.auth.jwks_file
        )));
    }
    telemetry::start_logs(&config.log).map_err(Failure::Configuration)?;
    let runtime = compose::runtime("berth-http", 1).map_err(Failure::Start)?;
    // Before anything starts: a signal during a long replay must find somebody who listens.
    let signals = {
        let _inside = runtime.enter();
        Signals::listen().context("listening to signals").map_err(Failure::Start)?
    };
    if !config.scheduler.listen.ip().is_loopback() {
        tracing::warn!(
            listen = %config.scheduler.listen,
            "berth dev gives anybody who reaches this address a token for any user, and the back end's key"
        );
    }
    let handle = runtime.handle().clone();
    let start = || Dev::start(&config, &args.data_dir, runtime).map_err(super::started);
    let (dev, signals) = signals.during(&handle, start)?;
    let served = serve(&dev, signals, args.json);
    dev.stop();
    served.map_err(Failure::Start)
}

/// Until a signal asks to stop, or readiness does not come.
fn serve(dev: &Dev, mut signals: Signals, as_json: bool) -> anyhow::Result<()> {
    dev.runtime().block_on(async {
        let stopped = async {
            while signals.next().await == Asked::Reload {
                dev.reload();
            }
        };
        let announced = async {
            ready(dev).await?;
            announce(dev, as_json).context("writing to stdout")?;
            std::future::pending::<anyhow::Result<()>>().await
        };
        let served = tokio::select! {
            () = stopped => Ok(()),
            failed = announced => failed,
        };
        tokio::spawn(signals.exit_at_once());
        tracing::info!("stopping");
        served
    })
}

async fn ready(dev: &Dev) -> anyhow::Result<()> {
    let started = Instant::now();
    while let Err(reason) = dev.ready() {
        if started.elapsed() > READY_WITHIN {
            return Err(anyhow!("not ready after {} s: {reason}", READY_WITHIN.as_secs()));
        }
        tokio::time::sleep(READY_POLL).await;
    }
    Ok(())
}

/// A reader who has gone is no reason to stop: the addresses are in the log too.
fn announce(dev: &Dev, as_json: bool) -> std::io::Result<output::Reader> {
    let Addresses { scheduler, gateway, logic, admin } = dev.addresses();
    tracing::info!(%scheduler, %gateway, %logic, %admin, "ready");
    let (alice, bob) = (dev.token("alice"), dev.token("bob"));
    if as_json {
        let line = json!({
            "scheduler": format!("http://{scheduler}"),
            "gateway": gateway.to_string(),
            "logic": format!("http://{logic}"),
            "admin": format!("http://{admin}"),
            "serviceKey": dev.auth.service_key,
            "adminKey": dev.auth.admin_key,
            "tokens": { "alice": alice, "bob": bob },
        });
        return output::print(format_args!("{line}"));
    }
    let (service_key, admin_key) = (&dev.auth.service_key, &dev.auth.admin_key);
    output::print(format_args!(
        "\
Berth is ready.

  scheduler   http://{scheduler}            where clients ask for a gateway
  gateway     ws://{gateway}/v1/ws, tcp://{gateway}
  logic       http://{logic}            where your back end sends from
  admin       http://{admin}/readyz, /metrics

  alice       {alice}
  bob         {bob}
  back end    {service_key}
  operator    {admin_key}

Try next, in other terminals:

  berth chat alice bob --scheduler http://{scheduler}
  berth chat bob alice --scheduler http://{scheduler}
  berth demo --scheduler http://{scheduler}

  curl -s http://{scheduler}/v1/schedule -H \"Authorization: Bearer $(curl -s http://{scheduler}/v1/dev/token \\
    -H 'Content-Type: application/json' -d '{{\"userId\":\"alice\"}}' | sed 's/.*:\"//; s/\".*//')\" \\
    -H 'Content-Type: application/json' -d '{{\"deviceId\":\"d1\"}}'

Ctrl-C stops it; its data stays."
    ))
}
