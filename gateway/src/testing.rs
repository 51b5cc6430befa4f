//! For the crate's own tests: what threads share without any thread, and metrics that can be read.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use berth_proto::metric::Registry;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use mio::{Poll, Waker};

use crate::{
    clock::Clock,
    config::Config,
    inlet::Inlet,
    metrics::Metrics,
    shared::{Parts, Shared, lock},
    worker::WAKER,
};

/// What the threads of a gateway share, with nobody at work on it.
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    pub(crate) polls: Vec<Poll>,
    pub(crate) recorder: Values,
}

impl Site {
    pub(crate) fn new(workers: usize) -> Self {
        Self::with(workers, |_| {})
    }

    pub(crate) fn with(workers: usize, configure: impl FnOnce(&mut Config)) -> Self {
        let recorder = Values::default();
        let polls: Vec<Poll> = (0..workers).map(|_| Poll::new().expect("an epoll instance")).collect();
        let inlet =
            |poll: &Poll| Arc::new(Inlet::new(Waker::new(poll.registry(), WAKER).expect("an eventfd")));
        let mut config = Config::new("gw-1", "127.0.0.1:0".parse().expect("an address"));
        // These tests flood.
        config.limits.frames_per_second = 0;
        configure(&mut config);
        let shared = Arc::new(Shared::new(Parts {
            config,
            boot: 1,
            clock: Clock::start(),
            metrics: Metrics::new(Registry::new(&recorder)),
            inlets: polls.iter().map(inlet).collect(),
            endpoints: Vec::new(),
            capacity: 1_000,
        }));
        Self { shared, polls, recorder }
    }
}

/// A metrics recorder that adds up each counter, by name and label values.
#[derive(Default)]
pub(crate) struct Values {
    series: Mutex<HashMap<String, Arc<AtomicU64>>>,
}

impl Values {
    /// The value of `name`, or of `name` and its labels' values with blanks between. Fails if there is no such series.
    pub(crate) fn value(&self, name: &str) -> u64 {
        lock(&self.series).get(name).unwrap_or_else(|| panic!("no series {name}")).load(Relaxed)
    }

    fn series(&self, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().map(|label| format!(" {}", label.value()));
        let name = [key.name().to_owned()].into_iter().chain(labels).collect();
        Arc::clone(lock(&self.series).entry(name).or_default())
    }
}

impl Recorder for Values {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
