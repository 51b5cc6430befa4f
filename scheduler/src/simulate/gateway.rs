//! A simulated gateway: a backlog that is taken at the handshake rate, connections, and reports.

use std::collections::VecDeque;

use berth_proto::{
    client::Endpoint,
    limits,
    wire::{GatewayLoad, GatewayReport},
};

use crate::policy::STABLE;

/// The pool beside `stable`.
pub(super) const CANARY: &str = "canary";

/// What a gateway said at one time, on its way to the schedulers.
struct Said {
    connections: u64,
    handshakes_per_second: u64,
    used_tickets: Vec<u64>,
}

/// One gateway.
pub(super) struct Gateway {
    pub alive: bool,
    /// Its reports are lost on the way.
    pub silent: bool,
    pub connections: u64,
    /// Clients in the kernel's backlog, with the attempt that each is of.
    pub backlog: VecDeque<(u32, u16)>,
    /// When the next may be accepted, in thousandths of a millisecond.
    free_us: u64,
    /// Accepted since the last report, and the smoothed rate.
    accepted: u64,
    rate: f64,
    used: Vec<u64>,
    on_the_way: VecDeque<Said>,
    report: GatewayReport,
}

impl Gateway {
    pub fn new(number: u32, canary: bool, capacity: u64, handshakes_per_second: u32) -> Self {
        let id = format!("g{number}");
        let endpoint =
            Endpoint { transport: "ws".to_owned(), url: format!("ws://{id}"), ..Endpoint::default() };
        let report = GatewayReport {
            gateway_id: id,
            boot: 1,
            pool: if canary { CANARY } else { STABLE }.to_owned(),
            endpoints: vec![endpoint],
            ready: true,
            capacity,
            handshakes_per_second_capacity: handshakes_per_second.into(),
            uptime_ms: 3_600_000,
            ..GatewayReport::default()
        };
        Self {
            alive: true,
            silent: false,
            connections: 0,
            backlog: VecDeque::new(),
            free_us: 0,
            accepted: 0,
            rate: 0.0,
            used: Vec::new(),
            on_the_way: VecDeque::new(),
            report,
        }
    }

    pub fn capacity(&self) -> u64 {
        self.report.capacity
    }

    pub fn canary(&self) -> bool {
        self.report.pool == CANARY
    }

    /// Takes one place of the handshake rate, with one second's worth at once. None left: when there will be, in
    /// milliseconds from now.
    pub fn handshake(&mut self, now_ms: u32) -> Result<(), u32> {
        let now_us = u64::from(now_ms) * 1_000;
        if self.free_us > now_us {
            return Err(u32::try_from((self.free_us - now_us).div_ceil(1_000)).unwrap_or(u32::MAX));
        }
        let step_us = 1_000_000 / self.report.handshakes_per_second_capacity.max(1);
        self.free_us = self.free_us.max(now_us.saturating_sub(1_000_000)) + step_us;
        self.accepted += 1;
        Ok(())
    }

    /// A ticket was shown that no gateway has seen.
    pub fn saw(&mut self, schedule_id: u64) {
        self.used.push(schedule_id);
    }

    /// Says how it is: the report is on its way.
    pub fn say(&mut self, interval_ms: u32) {
        let rate = self.accepted as f64 * 1_000.0 / f64::from(interval_ms);
        self.rate += (rate - self.rate) / 4.0;
        self.accepted = 0;
        let some = self.used.len().min(limits::USED_TICKETS);
        self.on_the_way.push_back(Said {
            connections: self.connections,
            handshakes_per_second: self.rate as u64,
            used_tickets: self.used.drain(..some).collect(),
        });
    }

    /// The oldest report that is on its way arrives, if it is not lost.
    pub fn heard(&mut self) -> Option<&GatewayReport> {
        let said = self.on_the_way.pop_front()?;
        if self.silent {
            return None;
        }
        let hold = 500 * said.connections / self.report.capacity.max(1);
        let accept = 500 * said.handshakes_per_second / self.report.handshakes_per_second_capacity.max(1);
        self.report.connections = said.connections;
        self.report.used_tickets = said.used_tickets;
        // Half of the CPU for as many connections as it can hold, half for as many handshakes as it accepts.
        self.report.load = Some(GatewayLoad {
            handshakes_per_second: said.handshakes_per_second,
            cpu_millis_per_second: hold + accept,
            cpu_millis_per_second_capacity: 1_000,
            ..GatewayLoad::default()
        });
        Some(&self.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_handshakes_at_once_then_at_the_rate() {
        let mut gateway = Gateway::new(1, false, 100, 10);
        let mut burst = 0;
        while gateway.handshake(5_000).is_ok() {
            burst += 1;
        }
        assert_eq!(burst, 11);
        assert_eq!(gateway.handshake(5_000), Err(100));
        assert_eq!(gateway.handshake(5_100), Ok(()));
        assert_eq!(gateway.handshake(5_101), Err(99));
    }

    #[test]
    fn a_report_says_what_was_when_it_was_made() {
        let mut gateway = Gateway::new(1, true, 100, 10);
        gateway.saw(7);
        gateway.connections = 40;
        gateway.say(500);
        gateway.connections = 90;
        let report = gateway.heard().expect("on its way");
        assert_eq!(
            (report.connections, report.used_tickets.as_slice(), report.pool.as_str()),
            (40, &[7][..], CANARY)
        );
        assert!(gateway.heard().is_none());
        gateway.say(500);
        gateway.silent = true;
        assert!(gateway.heard().is_none(), "lost");
    }
}
