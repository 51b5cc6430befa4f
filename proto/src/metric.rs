//! How a role registers its metrics: typed handles in a struct, every series there from the start, no global recorder.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};

/// Registers metrics with a recorder that the composition owns.
#[derive(Clone, Copy)]
pub struct Registry<'a> {
    recorder: &'a (dyn Recorder + Send + Sync),
}

/// Label names and values of one series, in the order they are written.
pub type Labels<'a> = &'a [(&'static str, &'static str)];

impl<'a> Registry<'a> {
    /// Registers with `recorder`.
    #[must_use]
    pub fn new(recorder: &'a (dyn Recorder + Send + Sync)) -> Self {
        Self { recorder }
    }

    /// A counter: its name ends in `_total`.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    /// A counter with one label whose values are known only at run time (pools). The caller bounds how many there are.
    pub fn counter_of(
        &self,
        name: &'static str,
        help: &'static str,
        (label, value): (&'static str, &str),
        labels: Labels<'_>,
    ) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
        let first = Label::new(label, value.to_owned());
        let rest = labels.iter().map(|(k, v)| Label::from_static_parts(k, v));
        let key = Key::from_parts(name, std::iter::once(first).chain(rest).collect::<Vec<_>>());
        self.recorder.register_counter(&key, &METADATA)
    }

    /// A gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Gauge {
        self.recorder.describe_gauge(KeyName::from_const_str(name), None, help.into());
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// A gauge with one label whose values are known only at run time (rules). The caller bounds how many there are.
    pub fn gauge_of(
        &self,
        name: &'static str,
        help: &'static str,
        (label, value): (&'static str, &str),
    ) -> Gauge {
        self.recorder.describe_gauge(KeyName::from_const_str(name), None, help.into());
        let key = Key::from_parts(name, vec![Label::new(label, value.to_owned())]);
        self.recorder.register_gauge(&key, &METADATA)
    }

    /// A histogram in seconds: its name ends in `_seconds`.
    pub fn seconds(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Histogram {
        self.recorder.describe_histogram(KeyName::from_const_str(name), Some(Unit::Seconds), help.into());
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }
}

static METADATA: Metadata<'static> = Metadata::new("berth", Level::INFO, None);

fn key(name: &'static str, labels: Labels<'_>) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::from_static_parts(k, v)).collect();
    Key::from_parts(name, labels)
}
