//! `berth scheduler`: one replica of the Access Schedule Service.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::json;

use super::role;
use crate::{
    compose::scheduler::{self, Addresses, SchedulerRole},
    exit::Failure,
};

/// Arguments of `berth scheduler`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Clients' HTTP: where to connect. Port 0 takes a free one. [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where gateways dial in. [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDR")]
    rpc: Option<SocketAddr>,
    /// The operator's HTTP: /livez, /readyz, /metrics, /version. [default: 127.0.0.1:7702]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Policy file (TOML); read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    policy: Option<String>,
    /// Address database (MMDB) that says where clients are; read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "FILE.mmdb")]
    geoip: Option<String>,
    /// Where what must outlive it is kept: drains, revocations, the policy. Without, its gateways carry it.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Configuration file (TOML); BERTH_SECTION__KEY variables and flags are laid over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the bound addresses as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Runs until a signal.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = role::configured(
        role::layers(args.config.as_deref())
            .flag("--listen", "scheduler.listen", args.listen)
            .flag("--rpc", "scheduler.rpc_listen", args.rpc)
            .flag("--admin", "scheduler.admin_listen", args.admin)
            .flag("--policy", "scheduler.policy_file", args.policy.as_ref())
            .flag("--geoip", "scheduler.geoip", args.geoip.as_ref())
            .flag("--data-dir", "scheduler.data_dir", args.data_dir.as_ref()),
    )?;
    let auth = &config.auth;
    // Either way to verify users' tokens will do; the secret is the one to name.
    let users = if auth.jwks_file.is_empty() { &auth.jwt_secret } else { &auth.jwks_file };
    let needed = [("auth.jwt_secret", users.as_str()), ("auth.ticket_key", auth.ticket_key.as_str())];
    let key = role::keys(&config, "scheduler", &needed)?;
    let settings = scheduler::settings(&config).map_err(Failure::Configuration)?;
    let (runtime, signals) = role::runtime("berth-scheduler", 2)?;
    let handle = runtime.handle().clone();
    let start = || SchedulerRole::start(&config, settings, key, runtime).map_err(super::started);
    let (scheduler, signals) = signals.during(&handle, start)?;
    let Addresses { client, rpc, admin } = scheduler.addresses();
    let addresses = json!({
        "scheduler": format!("http://{client}"),
        "rpc": rpc.to_string(),
        "admin": format!("http://{admin}"),
    });
    let announced = role::announce("scheduler", &addresses, args.json);
    if announced.is_ok() {
        role::wait(scheduler.runtime(), signals, || scheduler.reload());
    }
    scheduler.stop();
    announced
}
