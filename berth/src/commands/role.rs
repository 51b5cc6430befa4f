//! What the commands of single roles share: the configuration's layers, keys, signals, and the line that says where it listens.

use std::path::Path;

use anyhow::{Context, anyhow};
use berth_link::ClusterKey;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    compose,
    config::{Config, Layers},
    exit::Failure,
    lifecycle::{Asked, Signals},
    output, telemetry,
};

/// A configuration file and the environment, under a role's flags.
pub fn layers(file: Option<&Path>) -> Layers {
    Layers::defaults().file(file).environment(std::env::vars_os())
}

/// The configuration in force; logging has begun.
pub fn configured(layers: Layers) -> Result<Config, Failure> {
    let effective = layers.finish().map_err(|problem| Failure::Configuration(problem.into()))?;
    telemetry::start_logs(&effective.config.log).map_err(Failure::Configuration)?;
    Ok(effective.config)
}

/// The cluster key, once every key that the role needs is there.
pub fn keys(
    config: &Config,
    role: &'static str,
    others: &[(&'static str, &str)],
) -> Result<ClusterKey, Failure> {
    let cluster_key = ("auth.cluster_key", config.auth.cluster_key.as_str());
    let needed: Vec<_> = others.iter().copied().chain([cluster_key]).collect();
    compose::require(role, &needed).map_err(|missing| Failure::Configuration(missing.into()))?;
    ClusterKey::new(cluster_key.1)
        .and_then(|key| key.after(&config.auth.cluster_key_previous))
        .map_err(|problem| Failure::Configuration(anyhow!(problem)))
}

/// A runtime with so many threads for everything but the role's own work, and the signals, which must find somebody who
/// listens from the beginning: a start may take long.
pub fn runtime(name: &str, threads: usize) -> Result<(Runtime, Signals), Failure> {
    let runtime = compose::runtime(name, threads).map_err(Failure::Start)?;
    let signals = {
        let _inside = runtime.enter();
        Signals::listen().context("listening to signals").map_err(Failure::Start)?
    };
    Ok((runtime, signals))
}

/// Says where the role listens: one line of JSON, or one for people.
pub fn announce(role: &str, addresses: &Value, as_json: bool) -> Result<(), Failure> {
    let printed = if as_json {
        output::print(format_args!("{addresses}"))
    } else {
        let listed: Vec<String> = addresses
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, at)| format!("{name} {}", at.as_str().unwrap_or_default()))
            .collect();
        output::print(format_args!("berth {role}: {}", listed.join(", ")))
    };
    // Nobody has to read it.
    printed.map(drop).context("printing the addresses").map_err(Failure::Start)
}

/// Until a signal asks to stop; SIGHUP calls `reload`. A second signal during the stop does not wait.
pub fn wait(runtime: &Runtime, mut signals: Signals, reload: impl Fn()) {
    runtime.block_on(async {
        while signals.next().await == Asked::Reload {
            reload();
        }
        tokio::spawn(signals.exit_at_once());
        tracing::info!("stopping");
    });
}
