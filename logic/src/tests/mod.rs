//! The whole of logic in one process, with a gateway that a test holds in its hand.

mod damage;
mod disk;
pub(crate) mod engine;
mod faults;
mod gateway;
mod giant;
mod groups;
mod http;
mod recorder;
mod restart;
mod revoked;
mod road;
mod small;

use std::{sync::Arc, time::Duration};

use berth_proto::metric::Registry;

use self::engine::Volatile;
use crate::{
    Config, Logic, StartError, StoreChoice,
    backend::{Marker, Opened},
    conformance::no_metrics,
    kv::Kv,
    metrics::Metrics,
    store::Epoch,
};

/// How long a test waits for what must happen: far above what it takes, so that only a fault meets it.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

pub(super) const KEY: &str = "a service key of thirty-two bytes";

pub(super) fn config(store: StoreChoice) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        os_boot_id: "boot-1".to_owned(),
        ..Config::new("logic-1", store, KEY)
    }
}

/// A logic over maps in memory.
pub(super) async fn in_memory() -> Logic {
    let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
    Logic::start(config(StoreChoice::Memory), registry).await.expect("starts")
}

/// A logic over given engines; the queue's has its files too.
pub(super) async fn over(config: Config, queue: Arc<Volatile>, store: Arc<dyn Kv>, epoch: Epoch) -> Logic {
    try_over(config, queue, store, epoch, None).await.expect("starts")
}

/// The same, with metrics that a test reads.
async fn counted(counting: &recorder::Counting, queue: Arc<Volatile>, store: Arc<dyn Kv>) -> Logic {
    let config = config(StoreChoice::Memory);
    let metrics = Metrics::new(Registry::new(counting));
    with(config, queue, store, Epoch::Keep, None, metrics).await.expect("starts")
}

/// The same, where it may be refused.
pub(super) async fn try_over(
    config: Config,
    queue: Arc<Volatile>,
    store: Arc<dyn Kv>,
    epoch: Epoch,
    marker: Option<Marker>,
) -> Result<Logic, StartError> {
    with(config, queue, store, epoch, marker, no_metrics()).await
}

async fn with(
    config: Config,
    queue: Arc<Volatile>,
    store: Arc<dyn Kv>,
    epoch: Epoch,
    marker: Option<Marker>,
    metrics: Metrics,
) -> Result<Logic, StartError> {
    let now = (config.clock)();
    let opened = Opened { files: queue.files(), names: queue, store, epoch, marker };
    let backends = opened.backends(&config, metrics.queue.clone(), now)?;
    Logic::over(config, backends, metrics).await
}

/// Polls until `check` gives something.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
