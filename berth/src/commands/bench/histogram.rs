//! A log-linear histogram of times, after Gil Tene's HdrHistogram: three significant digits from 1 ns to hours, and two of
//! them add up without loss.

use serde::{Deserialize, Serialize};

/// Each power of two is cut into this many buckets of equal width: a value is off by less than 1/1024.
const WIDTH_BITS: u32 = 10;

const WIDTH: u64 = 1 << WIDTH_BITS;

/// Times in nanoseconds, counted in buckets. Memory grows with the largest bucket seen, to at most 0.5 MB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Sparse", into = "Sparse")]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

/// What travels between processes: only the buckets with something in them, as (index, count).
#[derive(Serialize, Deserialize)]
struct Sparse {
    max: u64,
    sum: u64,
    buckets: Vec<(u32, u64)>,
}

impl Histogram {
    /// Counts one time.
    pub fn record(&mut self, nanos: u64) {
        self.add(bucket(nanos), 1);
        self.sum = self.sum.saturating_add(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (index, count) in other.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.add(index, *count);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest time, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, exactly; 0 when there is nothing.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The smallest time that `percent` of all are not above; 0 when there is nothing. The upper end of its bucket.
    pub fn percentile(&self, percent: f64) -> u64 {
        // The cast is exact below 2^53 counts, and saturates at the ends.
        let wanted = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut passed = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= wanted {
                return upper_end(index).min(self.max);
            }
        }
        self.max
    }

    fn add(&mut self, index: usize, count: u64) {
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += count;
        self.count += count;
    }
}

impl From<Histogram> for Sparse {
    fn from(histogram: Histogram) -> Self {
        let filled = histogram.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        let buckets =
            filled.filter_map(|(index, count)| Some((u32::try_from(index).ok()?, *count))).collect();
        Self { max: histogram.max, sum: histogram.sum, buckets }
    }
}

impl From<Sparse> for Histogram {
    fn from(sparse: Sparse) -> Self {
        let mut histogram = Self { max: sparse.max, sum: sparse.sum, ..Self::default() };
        // An index that no time has is another version's: it would only cost memory.
        for (index, count) in
            sparse.buckets.into_iter().filter(|(index, _)| *index as usize <= bucket(u64::MAX))
        {
            histogram.add(index as usize, count);
        }
        histogram
    }
}

/// Below two widths a bucket holds one value; above, each power of two has [`WIDTH`] of them.
fn bucket(nanos: u64) -> usize {
    let exponent = nanos.max(1).ilog2().saturating_sub(WIDTH_BITS);
    (u64::from(exponent) * WIDTH + (nanos >> exponent)) as usize
}

/// The largest value of a bucket.
fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * WIDTH {
        return index;
    }
    let exponent = index / WIDTH - 1;
    let first = (index - exponent * WIDTH) << exponent;
    first + ((1 << exponent) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram
    }

    proptest! {
        #[test]
        fn three_digits_hold(value in 0..u64::MAX / 4) {
            let end = upper_end(bucket(value));
            prop_assert!(end >= value && end - value <= value / WIDTH, "{value} is told as {end}");
            prop_assert!(bucket(end) == bucket(value) && bucket(end + 1) == bucket(value) + 1);
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0..10_000_000_000u64, 1..300),
            percent in 0.0..=100.0f64,
        ) {
            let histogram = of(&values);
            values.sort_unstable();
            let rank = ((percent / 100.0 * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let told = histogram.percentile(percent);
            prop_assert!(told >= exact && told - exact <= exact / WIDTH, "{told}, exactly {exact}");
            prop_assert_eq!(histogram.max(), values[values.len() - 1]);
        }

        #[test]
        fn merged_is_as_if_recorded_in_one_also_over_json(
            one in proptest::collection::vec(0..100_000_000_000u64, 0..100),
            other in proptest::collection::vec(0..100_000_000_000u64, 0..100),
        ) {
            let text = serde_json::to_string(&of(&other)).expect("has a JSON form");
            let mut merged = of(&one);
            merged.merge(&serde_json::from_str(&text).expect("reads back"));
            prop_assert_eq!(merged, of(&[one, other].concat()));
        }
    }

    #[test]
    fn an_empty_one_has_zeros() {
        let empty = Histogram::default();
        assert_eq!((empty.count(), empty.percentile(99.0), empty.max(), empty.mean()), (0, 0, 0, 0));
    }
}
