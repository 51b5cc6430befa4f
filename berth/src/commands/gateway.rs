//! `berth gateway`: holds clients' connections, and dials schedulers and logic.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::json;

use super::role;
use crate::{
    compose::gateway::{self, Addresses, GatewayRole, Peers},
    exit::Failure,
};

/// Arguments of `berth gateway`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name in the fleet: no two gateways may share one. [default: gw-1]
    #[arg(long)]
    id: Option<String>,
    /// Clients' WebSocket and TCP. Port 0 takes a free one. [default: 127.0.0.1:7710]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The operator's HTTP: /livez, /readyz, /metrics, /version. [default: 127.0.0.1:7712]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// HOST:PORT of a scheduler's --rpc; give every one. [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    scheduler: Vec<String>,
    /// HOST:PORT of logic's --rpc. [default: 127.0.0.1:7721]
    #[arg(long, value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    logic: Vec<String>,
    /// How clients reach it, where that is not the listen address.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where it stands.
    #[arg(long)]
    region: Option<String>,
    /// The failure domain within the region.
    #[arg(long)]
    zone: Option<String>,
    /// Which clients it is for: see the policy. [default: stable]
    #[arg(long)]
    pool: Option<String>,
    /// Connections it takes. [default: as many as its descriptors allow]
    #[arg(long, value_name = "N")]
    capacity: Option<u64>,
    /// Threads that hold connections. [default: one a core]
    #[arg(long, value_name = "N")]
    workers: Option<u16>,
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
            .flag("--id", "gateway.id", args.id.as_ref())
            .flag("--listen", "gateway.listen", args.listen)
            .flag("--admin", "gateway.admin_listen", args.admin)
            .flags("--scheduler", "gateway.schedulers", &args.scheduler)
            .flags("--logic", "gateway.logics", &args.logic)
            .flag("--advertise", "gateway.advertise", args.advertise.as_ref())
            .flag("--region", "gateway.region", args.region.as_ref())
            .flag("--zone", "gateway.zone", args.zone.as_ref())
            .flag("--pool", "gateway.pool", args.pool.as_ref())
            .flag("--capacity", "gateway.capacity", args.capacity)
            .flag("--workers", "gateway.workers", args.workers),
    )?;
    let key = role::keys(&config, "gateway", &[])?;
    gateway::check_reachable(&config.gateway).map_err(Failure::Configuration)?;
    let peers = Peers::new(&config, &key).map_err(Failure::Configuration)?;
    // One thread: it decodes what comes for the workers, and answers the pings by which the others know it is there.
    let (runtime, signals) = role::runtime("berth-links", 1)?;
    let handle = runtime.handle().clone();
    let start = || GatewayRole::start(&config, peers, runtime).map_err(Failure::Start);
    let (gateway, signals) = signals.during(&handle, start)?;
    let Addresses { client, admin } = gateway.addresses();
    let addresses = json!({ "gateway": client.to_string(), "admin": format!("http://{admin}") });
    let announced = role::announce("gateway", &addresses, args.json);
    if announced.is_ok() {
        role::wait(gateway.runtime(), signals, || {});
    }
    gateway.stop();
    announced
}
