//! Each role's configuration from ours: the same whether it runs alone or with the others.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use berth_logic::StoreChoice;
use berth_proto::schedule::HeartbeatParameters;
use berth_scheduler::{JwksFile, JwtKeys};
use tokio::runtime::Runtime;

use crate::config::{Auth, Config};

/// What names this start of the operating system, on Linux.
const OS_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Logic's store calls block for the length of a disk read: nobody else's tasks run beside them.
pub fn runtime_for_logic() -> anyhow::Result<Runtime> {
    super::runtime("berth-logic", cores().max(2))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The scheduler's.
pub fn scheduler(config: &Config, auth: &Auth) -> anyhow::Result<berth_scheduler::Config> {
    let scheduler = &config.scheduler;
    let (jwt, jwks_file) = match some(&auth.jwks_file) {
        Some(path) => {
            let (keys, file) =
                JwksFile::load(PathBuf::from(&path)).with_context(|| format!("auth.jwks_file = {path:?}"))?;
            (keys, Some(file))
        }
        None => {
            let secrets = given([&auth.jwt_secret, &auth.jwt_secret_previous]);
            (JwtKeys::from_secrets(&secrets).context("auth.jwt_secret")?, None)
        }
    };
    let bytes = |keys: Vec<&[u8]>| keys.into_iter().map(<[u8]>::to_vec).collect();
    if let Some(id) = some(&scheduler.id) {
        berth_proto::id::check(&id).with_context(|| format!("scheduler.id = {id:?}"))?;
    }
    Ok(berth_scheduler::Config {
        id: scheduler.id.clone(),
        listen: scheduler.listen,
        policy_file: some(&scheduler.policy_file).map(PathBuf::from),
        geoip_file: some(&scheduler.geoip).map(PathBuf::from),
        data_dir: some(&scheduler.data_dir).map(PathBuf::from),
        jwt,
        jwt_expected: auth.expected(),
        jwks_file,
        ticket_key: auth.ticket_key.clone().into_bytes(),
        other_ticket_keys: bytes(given([&auth.ticket_key_next, &auth.ticket_key_previous])),
        void_ticket_keys: bytes(given([&auth.ticket_key_void])),
        admin_key: auth.admin_key.clone(),
        previous_admin_key: auth.admin_key_previous.clone(),
        ticket_ttl: Duration::from_secs(scheduler.ticket_ttl_seconds.into()),
        heartbeat: heartbeat(config),
        reconnect: Default::default(),
        requests_per_second_per_user: scheduler.requests_per_second_per_user,
        spread_max_ms: scheduler.spread_max_ms,
        extra_routes: None,
    })
}

/// The gateway's.
pub fn gateway(config: &Config) -> berth_gateway::Config {
    let gateway = &config.gateway;
    berth_gateway::Config {
        workers: gateway.workers.into(),
        region: gateway.region.clone(),
        zone: gateway.zone.clone(),
        pool: gateway.pool.clone(),
        advertise: some(&gateway.advertise),
        capacity: (gateway.capacity > 0).then_some(gateway.capacity),
        handshakes_per_second: gateway.handshakes_per_second,
        sent_bytes_per_second: gateway.sent_bytes_per_second,
        heartbeat: heartbeat(config),
        ticket_grace: Duration::from_secs(gateway.ticket_grace_seconds.into()),
        limits: gateway.limits(),
        ..berth_gateway::Config::new(gateway.id.clone(), gateway.listen)
    }
}

/// Over how long a stopping gateway's clients are told to come back.
pub fn drain_spread(config: &Config) -> Duration {
    Duration::from_millis(config.gateway.drain_spread_ms.into())
}

/// Logic's.
pub fn logic(config: &Config, auth: &Auth, store: StoreChoice) -> anyhow::Result<berth_logic::Config> {
    let logic = &config.logic;
    let os_boot_id = match some(&config.store.os_boot_id) {
        Some(id) => id,
        None => std::fs::read_to_string(OS_BOOT_ID)
            .with_context(|| format!("reading {OS_BOOT_ID}; set store.os_boot_id where there is none"))?
            .trim()
            .to_owned(),
    };
    Ok(berth_logic::Config {
        node: logic.node,
        listen: logic.listen,
        inbox_lifetime: Duration::from_secs(u64::from(logic.inbox_lifetime_hours) * 3_600),
        partitions: logic.partitions,
        sessions_per_user: usize::try_from(logic.sessions_per_user).unwrap_or(usize::MAX),
        lease: Duration::from_secs(logic.lease_seconds.into()),
        os_boot_id,
        previous_service_key: auth.service_key_previous.clone(),
        ..berth_logic::Config::new(logic.id.clone(), store, auth.service_key.clone())
    })
}

fn heartbeat(config: &Config) -> HeartbeatParameters {
    HeartbeatParameters {
        interval_ms: config.gateway.heartbeat_interval_ms,
        timeout_ms: config.gateway.heartbeat_timeout_ms,
    }
}

/// Those keys that are set.
fn given<const N: usize>(keys: [&String; N]) -> Vec<&[u8]> {
    keys.into_iter().filter(|key| !key.is_empty()).map(String::as_bytes).collect()
}

/// A text that is set.
pub fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
