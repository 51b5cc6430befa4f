//! What is simulated: a fleet, its clients, and what happens to them; five by name, others written in TOML.

use serde::Deserialize;
use thiserror::Error;

use super::calendar::HORIZON_MS;
use crate::fleet::MAX_GATEWAYS;

/// A tenth of this is a million: what one process simulates in seconds, and holds in a few hundred megabytes.
const MAX_CLIENTS: u32 = 10_000_000;

/// An hour of virtual time.
const MAX_SECONDS: u32 = 3_600;

/// Share of its capacity that the fleet holds at the beginning, unless a capacity is given.
const UTILISATION: f64 = 0.6;

/// A fleet, its clients and what happens to them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// Its name, for tables and plots.
    pub name: String,
    /// Gateways at the beginning.
    pub gateways: u32,
    /// Of them, this share is in pool `canary`, the rest in `stable`.
    pub canary: f64,
    /// Clients; most of them are connected at the beginning, those that are away come back.
    pub clients: u32,
    /// Scheduler replicas; a client asks any of them.
    pub schedulers: u32,
    /// Connections a gateway can hold; 0: so many that the fleet begins 60% full.
    pub capacity: u64,
    /// Connections a gateway accepts a second; those above wait.
    pub handshakes_per_second: u32,
    /// How long a client stays, on average (exponential).
    pub session_seconds: f64,
    /// How long it then stays away, on average (exponential).
    pub away_seconds: f64,
    /// Between two reports of a gateway, in milliseconds.
    pub report_interval_ms: u32,
    /// How old a report is when the schedulers take it, in milliseconds.
    pub report_delay_ms: u32,
    /// How long the run is, in virtual seconds.
    pub seconds: u32,
    /// The first so many seconds are not measured.
    pub warm_up_seconds: u32,
    /// What happens, in order of time.
    pub event: Vec<Event>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "steady".to_owned(),
            gateways: 100,
            canary: 0.0,
            clients: 100_000,
            schedulers: 3,
            capacity: 0,
            handshakes_per_second: 2_000,
            session_seconds: 600.0,
            away_seconds: 60.0,
            report_interval_ms: 500,
            report_delay_ms: 500,
            seconds: 240,
            warm_up_seconds: 30,
            event: Vec::new(),
        }
    }
}

/// Something that happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "RawEvent")]
pub struct Event {
    /// In virtual seconds from the beginning.
    pub at: u32,
    /// What.
    pub what: What,
}

/// As it is written: `at`, and one of the others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    at: u32,
    lose: Option<f64>,
    silence: Option<f64>,
    hear: Option<bool>,
    percent: Option<f64>,
    drop: Option<f64>,
}

impl TryFrom<RawEvent> for Event {
    type Error = String;

    fn try_from(raw: RawEvent) -> Result<Self, String> {
        let RawEvent { at, lose, silence, hear, percent, drop } = raw;
        let given = [
            lose.map(What::Lose),
            silence.map(What::Silence),
            hear.filter(|hear| *hear).map(|_| What::Hear),
            percent.map(What::Percent),
            drop.map(What::Drop),
        ];
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(what), None) => Ok(Self { at, what }),
            _ => Err("an event has `at` and one of lose, silence, hear = true, percent, drop".to_owned()),
        }
    }
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// This share of the gateways is killed.
    Lose(f64),
    /// The reports of this share of the gateways are lost from now on; they serve all the same.
    Silence(f64),
    /// All reports come again.
    Hear,
    /// The gray rule `ramp` sends this percentage of the users to `canary`.
    Percent(f64),
    /// This share of the connections breaks at once.
    Drop(f64),
}

/// Why a scenario cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScenarioError {
    /// The text is no scenario.
    #[error("the scenario is not valid: {0}")]
    Text(String),
    /// A value cannot be.
    #[error("scenario key {key}: {problem}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Scenario {
    /// The names that [`Scenario::named`] knows.
    pub const NAMES: [&'static str; 5] = ["steady", "lose", "stale", "ramp", "storm"];

    /// One of the five.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let at = |at, what| Event { at, what };
        let event = match name {
            "steady" => vec![],
            "lose" => vec![at(60, What::Lose(0.1))],
            "stale" => vec![at(60, What::Silence(0.6)), at(150, What::Hear)],
            "ramp" => {
                vec![at(60, What::Percent(5.0)), at(420, What::Percent(25.0)), at(780, What::Percent(5.0))]
            }
            "storm" => vec![at(60, What::Drop(1.0))],
            _ => return None,
        };
        // A percentage shows only as tickets run out, which takes 300 s.
        let (canary, seconds) = if name == "ramp" { (0.3, 1_140) } else { (0.0, 240) };
        Some(Self { name: name.to_owned(), canary, seconds, event, ..Self::default() })
    }

    /// Reads a scenario; what it does not say is as in `steady`.
    ///
    /// # Errors
    /// When the text is no scenario, or a value cannot be.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|e| ScenarioError::Text(e.to_string()))?;
        scenario.checked()
    }

    /// Refuses what cannot be simulated.
    ///
    /// # Errors
    /// The first key whose value cannot be.
    pub fn checked(self) -> Result<Self, ScenarioError> {
        fn within<T: PartialOrd + std::fmt::Display>(
            key: &'static str,
            value: T,
            least: T,
            most: T,
        ) -> Result<(), ScenarioError> {
            if value >= least && value <= most {
                return Ok(());
            }
            Err(ScenarioError::Value { key, problem: format!("{value} is not between {least} and {most}") })
        }
        within("gateways", self.gateways, 1, MAX_GATEWAYS as u32)?;
        within("canary", self.canary, 0.0, 0.9)?;
        within("clients", self.clients, 1, MAX_CLIENTS)?;
        within("schedulers", self.schedulers, 1, 64)?;
        within("capacity", self.capacity, 0, 1 << 32)?;
        within("handshakes_per_second", self.handshakes_per_second, 1, 1_000_000)?;
        within("session_seconds", self.session_seconds, 1.0, 1e6)?;
        within("away_seconds", self.away_seconds, 1.0, 1e6)?;
        within("report_interval_ms", self.report_interval_ms, 10, HORIZON_MS / 2)?;
        within("report_delay_ms", self.report_delay_ms, 0, HORIZON_MS / 2)?;
        within("seconds", self.seconds, 1, MAX_SECONDS)?;
        within("warm_up_seconds", self.warm_up_seconds, 0, self.seconds - 1)?;
        for event in &self.event {
            within("event.at", event.at, 1, self.seconds)?;
            match event.what {
                What::Lose(share) => within("event.lose", share, 0.0, 0.9)?,
                What::Silence(share) => within("event.silence", share, 0.0, 1.0)?,
                What::Percent(percent) => within("event.percent", percent, 0.0, 100.0)?,
                What::Drop(share) => within("event.drop", share, 0.0, 1.0)?,
                What::Hear => {}
            }
        }
        Ok(self)
    }

    /// Of the clients, so many are connected when nothing happens.
    pub(super) fn online(&self) -> u32 {
        let share = self.session_seconds / (self.session_seconds + self.away_seconds);
        (f64::from(self.clients) * share) as u32
    }

    /// Connections that a gateway can hold.
    pub(super) fn capacity(&self) -> u64 {
        if self.capacity > 0 {
            return self.capacity;
        }
        let each = f64::from(self.online()) / f64::from(self.gateways);
        ((each / UTILISATION) as u64).max(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_by_name_are_valid() {
        for name in Scenario::NAMES {
            let scenario = Scenario::named(name).expect("known").checked().expect("valid");
            assert_eq!(scenario.name, name);
        }
        assert_eq!(Scenario::named("quiet"), None);
    }

    #[test]
    fn a_text_says_what_differs() {
        let text = "clients = 5000\nreport_delay_ms = 2000\n[[event]]\nat = 10\nlose = 0.5\n[[event]]\nat = 20\ndrop = 1.0";
        let scenario = Scenario::parse(text).expect("valid");
        assert_eq!((scenario.clients, scenario.gateways), (5_000, 100));
        assert_eq!(scenario.event[0], Event { at: 10, what: What::Lose(0.5) });
        assert_eq!(scenario.event[1].what, What::Drop(1.0));
        let wrong = |text: &str| Scenario::parse(text).expect_err("wrong").to_string();
        assert!(wrong("gateway = 3").contains("gateway"), "{}", wrong("gateway = 3"));
        assert_eq!(wrong("gateways = 0"), "scenario key gateways: 0 is not between 1 and 20000");
        assert!(wrong("[[event]]\nat = 10\nexplode = 1").contains("explode"));
        for several in ["", "\nlose = 0.1\ndrop = 0.1", "\nhear = false"] {
            assert!(wrong(&format!("[[event]]\nat = 10{several}")).contains("one of lose"), "{several:?}");
        }
        assert!(wrong("[[event]]\nat = 999\nlose = 0.1").contains("event.at"));
    }

    #[test]
    fn the_example_in_the_document_is_a_scenario() {
        let document = include_str!("../../../docs/scheduling.md");
        let example = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let scenario = Scenario::parse(example.expect("there is one")).expect("valid");
        assert_eq!(scenario.event.len(), 2);
    }

    #[test]
    fn a_fleet_begins_sixty_percent_full() {
        let scenario = Scenario { clients: 110_000, ..Scenario::default() };
        assert_eq!(scenario.online(), 100_000);
        assert_eq!(scenario.capacity(), 1_666);
        assert_eq!(Scenario { capacity: 7, ..scenario }.capacity(), 7);
    }
}
