//! The newest report of every gateway: what snapshots are built from.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU32},
};

use berth_proto::{id, limits, wire::GatewayReport};
use thiserror::Error;

use super::{
    Fleet, Profile,
    build::{Layout, build},
    health::{DEAD_AFTER_MS, FORGET_AFTER_MS, STALE_AFTER_MS, distrust},
    load::{self, Strain, Usage},
};
use crate::transport::Transports;

/// Most gateways one scheduler keeps: twice the 10,000 that it is measured with.
pub const MAX_GATEWAYS: usize = 20_000;

/// Endpoints one gateway may report: every transport, plain and TLS, twice.
const MAX_ENDPOINTS: usize = 8;

/// Handshakes a second of a gateway that does not tell how many it takes: PROTOCOL.md's default.
const DEFAULT_HANDSHAKES: u64 = 2_000;

/// Most handshakes a second that one gateway is believed to take: the most that one can be configured with.
const MAX_HANDSHAKES: u64 = 1_000_000;

/// Longest endpoint URL, in bytes: a DNS name and room around it.
const MAX_URL: usize = 512;

/// Why a report is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// A label is not of its form.
    #[error("the gateway's {field} {problem}")]
    Label {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Another link of the same gateway attached later: it speaks for the gateway now.
    #[error("a newer link speaks for this gateway; are two gateways running under one id?")]
    Superseded,
    /// The fleet is as large as it may be.
    #[error("the fleet has {MAX_GATEWAYS} gateways already")]
    TooMany,
}

/// What a gateway said last, and its place in the layout.
#[derive(Debug)]
pub(super) struct Entry {
    pub profile: Arc<Profile>,
    /// Its places among the pools, regions and zones of the layout.
    pub groups: [u32; 3],
    pub load: Load,
}

/// What changes from report to report.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub attachment: u64,
    pub reported_at_ms: i64,
    pub ready: bool,
    pub draining: bool,
    pub usage: Usage,
    pub strain: Strain,
    /// It says more than its connections.
    pub tells_strain: bool,
    /// What it counts for, in connections, as long as this report is fresh.
    pub load: u64,
    pub uptime_ms: u64,
    pub handshakes_per_second: u64,
    pub admit_per_second: u64,
}

impl Load {
    fn of(attachment: u64, report: &GatewayReport, now_ms: i64) -> Self {
        let usage = Usage::of(report);
        let strain = Strain::first(&usage);
        let handshakes_per_second = match report.handshakes_per_second_capacity {
            0 => DEFAULT_HANDSHAKES,
            told => told.min(MAX_HANDSHAKES),
        };
        // An older gateway leases nothing: what it takes is shared by the schedulers that it knows, if it says how many those are.
        let schedulers = report.schedulers.len().max(1) as u64;
        let admit_per_second = report.admit_per_second.unwrap_or(handshakes_per_second / schedulers);
        Self {
            attachment,
            reported_at_ms: now_ms,
            ready: report.ready,
            draining: report.draining,
            usage,
            strain,
            tells_strain: report.load.is_some(),
            load: load::load(&usage, strain),
            uptime_ms: report.uptime_ms,
            handshakes_per_second,
            admit_per_second: admit_per_second.min(handshakes_per_second),
        }
    }

    /// With what the same gateway, in the same run, has been before.
    fn after(self, before: &Self) -> Self {
        let elapsed_ms = self.reported_at_ms - before.reported_at_ms;
        let strain = before.strain.follow(&self.usage, elapsed_ms);
        Self { strain, load: load::load(&self.usage, strain), ..self }
    }

    /// What it would count for under such a pressure.
    pub fn as_strained(&self, pressure: f64) -> u64 {
        load::load(&self.usage, self.strain.at(pressure))
    }

    /// How much of it is still known, from 1 to 0.
    pub fn freshness(&self, now_ms: i64) -> f64 {
        load::freshness(now_ms - self.reported_at_ms)
    }

    pub fn silent(&self, now_ms: i64) -> bool {
        now_ms - self.reported_at_ms > STALE_AFTER_MS
    }
}

/// The newest report of every gateway.
#[derive(Debug, Default)]
pub struct Table {
    /// In the order of the layout, but for those that came since.
    entries: Vec<Entry>,
    /// Where each gateway's entry is.
    slots: HashMap<Arc<str>, u32>,
    layout: Arc<Layout>,
    /// A gateway came, went or changed its labels: the layout is no longer right.
    moved: bool,
    /// Gateways that an operator empties, whatever they say of themselves.
    drained: HashSet<String>,
}

impl Table {
    /// These gateways are being emptied, whatever they say of themselves.
    pub fn drain(&mut self, drained: HashSet<String>) {
        for Entry { profile, load, .. } in &mut self.entries {
            load.draining |= drained.contains(&*profile.id);
        }
        self.drained = drained;
    }

    /// Takes a report that came at `now_ms` over a link. Links are numbered in the order they attached: of two that speak
    /// for one gateway the later is believed, unless it has fallen silent. Says whether the next snapshot should not wait: a gateway is new, or its
    /// readiness, drain or labels changed.
    ///
    /// # Errors
    /// See [`ReportError`]; the table is as it was then.
    pub fn take(
        &mut self,
        attachment: u64,
        report: &GatewayReport,
        now_ms: i64,
    ) -> Result<bool, ReportError> {
        let mut fresh = Load::of(attachment, report, now_ms);
        fresh.draining |= self.drained.contains(&report.gateway_id);
        let Some(slot) = self.slots.get(report.gateway_id.as_str()) else {
            if self.entries.len() >= MAX_GATEWAYS {
                return Err(ReportError::TooMany);
            }
            let profile = Arc::new(profile(report)?);
            self.slots.insert(Arc::clone(&profile.id), self.entries.len() as u32);
            self.entries.push(Entry { profile, groups: [0; 3], load: fresh });
            self.moved = true;
            return Ok(true);
        };
        let entry = &mut self.entries[*slot as usize];
        // A later link that died must not lock out the earlier one, if that is the one that lives.
        if attachment < entry.load.attachment && !entry.load.silent(now_ms) {
            return Err(ReportError::Superseded);
        }
        if !describes(&entry.profile, report) {
            // With the old profile goes what was pending on it: another boot never hears of those tickets.
            entry.profile = Arc::new(profile(report)?);
            entry.load = fresh;
            self.moved = true;
            return Ok(true);
        }
        let urgent = (fresh.ready, fresh.draining) != (entry.load.ready, entry.load.draining)
            || entry.load.silent(now_ms);
        entry.load = fresh.after(&entry.load);
        Ok(urgent)
    }

    /// This scheduler itself was away for `away_ms` until `now_ms`, and could hear nobody: nobody was silent for that time.
    pub fn forgive(&mut self, away_ms: i64, now_ms: i64) {
        for Entry { load, .. } in &mut self.entries {
            load.reported_at_ms = load.reported_at_ms.saturating_add(away_ms).min(now_ms);
        }
    }

    /// How many gateways are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no gateway is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets who has been silent for long, and builds the snapshot of `now_ms`. A gateway started less than
    /// `slow_start_ms` ago counts for less than its capacity.
    #[must_use]
    pub fn snapshot(&mut self, now_ms: i64, slow_start_ms: i64) -> Fleet {
        let mut live = 0;
        let mut silent = Vec::new();
        for Entry { load, .. } in &self.entries {
            match (load.silent(now_ms), load.draining) {
                (false, _) => live += 1,
                (true, false) => silent.push(load.reported_at_ms),
                // A gateway that said it leaves, and left, tells nothing about our hearing.
                (true, true) => {}
            }
        }
        let distrust = distrust(&mut silent, live, now_ms);
        let before = self.entries.len();
        self.entries.retain(|Entry { load, .. }| {
            let disbelieved = distrust.is_some_and(|distrust| distrust.covers(load.reported_at_ms));
            let limit = if load.draining { DEAD_AFTER_MS } else { FORGET_AFTER_MS };
            now_ms - load.reported_at_ms <= limit || (disbelieved && !load.draining)
        });
        if self.moved || self.entries.len() != before {
            self.lay_out();
        }
        build(&self.layout, &self.entries, now_ms, slow_start_ms, distrust)
    }

    /// Sorts the entries by their groups. Dear, and done only when a gateway came, went or changed its labels.
    fn lay_out(&mut self) {
        self.entries.sort_by(|a, b| a.profile.place().cmp(&b.profile.place()));
        let mut layout = Layout::default();
        for (index, entry) in (0..).zip(&mut self.entries) {
            entry.groups = layout.add(index, &entry.profile);
        }
        self.slots.clone_from(&layout.by_id);
        self.layout = Arc::new(layout);
        self.moved = false;
    }
}

/// Whether the report says the same about what the gateway is.
fn describes(profile: &Profile, report: &GatewayReport) -> bool {
    let same_endpoint = |(ours, theirs): (&berth_proto::client::Endpoint, &berth_proto::client::Endpoint)| {
        ours.transport == theirs.transport && ours.url == theirs.url
    };
    profile.boot == report.boot
        && profile.region == report.region
        && profile.zone == report.zone
        && profile.pool == report.pool
        && profile.version == report.version
        && profile.endpoints.len() == report.endpoints.len()
        && profile.endpoints.iter().zip(&report.endpoints).all(same_endpoint)
}

fn profile(report: &GatewayReport) -> Result<Profile, ReportError> {
    named("id", &report.gateway_id)?;
    named("pool", &report.pool)?;
    short("region", &report.region, limits::CLIENT_TEXT)?;
    short("zone", &report.zone, limits::CLIENT_TEXT)?;
    short("version", &report.version, limits::CLIENT_TEXT)?;
    if report.endpoints.len() > MAX_ENDPOINTS {
        let problem = format!("are {}; at most {MAX_ENDPOINTS}", report.endpoints.len());
        return Err(ReportError::Label { field: "endpoints", problem });
    }
    let mut transports = Transports::NONE;
    let mut endpoints = Vec::with_capacity(report.endpoints.len());
    for endpoint in &report.endpoints {
        short("endpoint url", &endpoint.url, MAX_URL)?;
        short("endpoint transport", &endpoint.transport, limits::CLIENT_TEXT)?;
        transports = transports.with(Transports::named(&endpoint.transport).unwrap_or_default());
        endpoints.push(berth_proto::client::Endpoint {
            gateway_id: report.gateway_id.clone(),
            transport: endpoint.transport.clone(),
            url: endpoint.url.clone(),
            region: report.region.clone(),
            zone: report.zone.clone(),
            pool: report.pool.clone(),
        });
    }
    Ok(Profile {
        id: report.gateway_id.as_str().into(),
        boot: report.boot,
        region: report.region.clone(),
        zone: report.zone.clone(),
        pool: report.pool.clone(),
        version: report.version.clone(),
        endpoints,
        transports,
        pending: AtomicU32::new(0),
    })
}

fn named(field: &'static str, value: &str) -> Result<(), ReportError> {
    id::check(value).map_err(|e| ReportError::Label { field, problem: e.to_string() })
}

fn short(field: &'static str, value: &str, most: usize) -> Result<(), ReportError> {
    if value.len() <= most {
        return Ok(());
    }
    Err(ReportError::Label { field, problem: format!("has {} bytes; at most {most}", value.len()) })
}
