//! Reads the Prometheus text of the operators' ports.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::http;

/// The operators' ports of one server: shown as its first, scraped as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Admin(Vec<String>);

impl Admin {
    /// Of several processes, as `http://host:port`; one that is named again is the same.
    pub fn of(urls: impl IntoIterator<Item = String>) -> Self {
        let mut all = Vec::new();
        for url in urls {
            if !all.contains(&url) {
                all.push(url);
            }
        }
        Self(all)
    }

    /// Each of them.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.0
    }
}

impl From<String> for Admin {
    fn from(url: String) -> Self {
        Self(vec![url])
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.first().map_or("", String::as_str))
    }
}

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    series: Vec<Series>,
}

#[derive(Debug, Clone)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Scrapes every process behind `admin`; what several have is added up by [`Scrape::sum`].
    ///
    /// # Errors
    /// When one does not answer, or with something else than metrics.
    pub async fn fetch(admin: &Admin) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for url in &admin.0 {
            let answer = http::get(&format!("{url}/metrics"), None).await?;
            ensure!(answer.status == 200, "GET /metrics: {} {}", answer.status, answer.body);
            all.series.extend(Self::parse(&answer.body)?.series);
        }
        Ok(all)
    }

    /// Reads the text format.
    ///
    /// # Errors
    /// Shows the line that is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| series(line).with_context(|| format!("no metric: {line}")));
        Ok(Self { series: series.collect::<anyhow::Result<_>>()? })
    }

    /// Whether there is any series of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.series.iter().any(|series| series.name == name)
    }

    /// The sum of every series of that name which carries all these labels; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |series: &&Series| {
            series.name == name
                && labels.iter().all(|(k, v)| series.labels.get(*k).is_some_and(|value| value == v))
        };
        self.series.iter().filter(carries).map(|series| series.value).sum()
    }

    /// Every series: name, labels, value.
    pub fn all(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>, f64)> {
        self.series.iter().map(|s| (s.name.as_str(), &s.labels, s.value))
    }
}

/// `name{key="value",...} number`. Label values of ours contain no quote or comma.
fn series(line: &str) -> Option<Series> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some(Series { name: head.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut labels = BTreeMap::new();
    for label in rest.strip_suffix('}')?.split(',').filter(|label| !label.is_empty()) {
        let (key, quoted) = label.split_once('=')?;
        labels.insert(key.to_owned(), quoted.trim_matches('"').to_owned());
    }
    Some(Series { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_prometheus_reads() {
        let text =
            "# HELP a b\n# TYPE a counter\na_total{code=\"x\",z=\"1\"} 2\na_total{code=\"y\"} 3\nb 1.5\n";
        let scrape = Scrape::parse(text).expect("the text format");
        assert_eq!(scrape.sum("a_total", &[]), 5.0);
        assert_eq!(scrape.sum("a_total", &[("code", "x")]), 2.0);
        assert_eq!(scrape.sum("a_total", &[("code", "none")]), 0.0);
        assert!(scrape.has("b") && !scrape.has("c"));
        assert!(Scrape::parse("nonsense").is_err());
    }
}
