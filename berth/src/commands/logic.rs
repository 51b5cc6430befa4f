//! `berth logic`: stores messages and delivers them.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::json;

use super::role;
use crate::{
    compose::logic::{self, Addresses, LogicRole},
    exit::Failure,
};

/// Arguments of `berth logic`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name among the logic instances. [default: logic-1]
    #[arg(long)]
    id: Option<String>,
    /// The back end's HTTP. Port 0 takes a free one. [default: 127.0.0.1:7720]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where gateways dial in. [default: 127.0.0.1:7721]
    #[arg(long, value_name = "ADDR")]
    rpc: Option<SocketAddr>,
    /// The operator's HTTP: /livez, /readyz, /metrics, /version. [default: 127.0.0.1:7722]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Where messages are kept: memory, or embedded:DIR. [default: embedded:berth-data]
    #[arg(long)]
    store: Option<String>,
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
            .flag("--id", "logic.id", args.id.as_ref())
            .flag("--listen", "logic.listen", args.listen)
            .flag("--rpc", "logic.rpc_listen", args.rpc)
            .flag("--admin", "logic.admin_listen", args.admin)
            .flag("--store", "store.backend", args.store.as_ref()),
    )?;
    let key = role::keys(&config, "logic", &[("auth.service_key", &config.auth.service_key)])?;
    let store = logic::store(&config.store.backend).map_err(Failure::Configuration)?;
    // The links' own threads: they encode every notify, and answer pings while the store is busy.
    let (runtime, signals) = role::runtime("berth-links", 2)?;
    let handle = runtime.handle().clone();
    let start = || LogicRole::start(&config, store, key, runtime).map_err(Failure::Start);
    let (logic, signals) = signals.during(&handle, start)?;
    let Addresses { backend, rpc, admin } = logic.addresses();
    let addresses = json!({
        "logic": format!("http://{backend}"),
        "rpc": rpc.to_string(),
        "admin": format!("http://{admin}"),
    });
    let announced = role::announce("logic", &addresses, args.json);
    if announced.is_ok() {
        role::wait(logic.runtime(), signals, || {});
    }
    logic.stop();
    announced
}
