//! Logs to stderr and the recorder behind /metrics.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Bounds of the histograms in seconds: from a fast append to a lost client's patience.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Starts logging: text on a terminal, JSON otherwise, as `log.format` says.
///
/// # Errors
/// When `log.filter` is no filter.
pub fn start_logs(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| anyhow::anyhow!("log.filter = {:?} is no filter: {error}", log.filter))?;
    let text = match log.format.as_str() {
        "text" => true,
        "json" => false,
        _ => std::io::stderr().is_terminal(),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if text {
        logs.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        logs.json().flatten_event(true).init();
    }
    Ok(())
}

/// A recorder of this composition's own: the roles register with it, the admin port renders it. It lives as long as the
/// process, since a role may register a series when it first sees the thing it counts.
pub fn recorder() -> &'static PrometheusRecorder {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .expect("there are buckets")
        .build_recorder();
    Box::leak(Box::new(recorder))
}
