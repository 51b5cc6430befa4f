//! Times as operators write them: RFC 3339 on one side, milliseconds since the Unix epoch on the other.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::value::{Datetime, Offset};

const MS_OF_A_DAY: i64 = 86_400_000;

/// A point in time of a policy: a TOML date-time, or the same in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    /// Since the Unix epoch; none: it has no date, no time, or no offset from UTC.
    pub ms: Option<i64>,
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like 2026-12-01T10:00:00Z")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Time, E> {
                Ok(Time { ms: text.parse().ok().and_then(|time| unix_ms(&time)) })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Time, A::Error> {
                let time = Datetime::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Time { ms: unix_ms(&time) })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn unix_ms(time: &Datetime) -> Option<i64> {
    let (date, clock, offset) = (time.date?, time.time?, time.offset?);
    let offset_minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_from_civil(date.year.into(), date.month.into(), date.day.into());
    let minutes = i64::from(clock.hour) * 60 + i64::from(clock.minute) - offset_minutes;
    let seconds = minutes * 60 + i64::from(clock.second.unwrap_or(0));
    Some(days * MS_OF_A_DAY + seconds * 1_000 + i64::from(clock.nanosecond.unwrap_or(0) / 1_000_000))
}

/// RFC 3339 in UTC, to the second.
#[must_use]
pub fn rfc3339(unix_ms: i64) -> String {
    let (days, of_day) = (unix_ms.div_euclid(MS_OF_A_DAY), unix_ms.rem_euclid(MS_OF_A_DAY) / 1_000);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days since the Unix epoch of a date of the Gregorian calendar (Howard Hinnant's `days_from_civil`): eras of 400 years that
/// begin in March, so that the leap day is the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let (era, of_era) = ((days + 719_468).div_euclid(146_097), (days + 719_468).rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(text: &str) -> Option<i64> {
        unix_ms(&text.parse().expect("a date-time of TOML"))
    }

    #[test]
    fn times_are_those_of_other_programs() {
        // date -u -d TEXT +%s
        assert_eq!(ms("2026-12-01T10:00:00Z"), Some(1_796_119_200_000));
        assert_eq!(ms("2024-02-29T23:59:59.25+08:00"), Some(1_709_222_399_250));
        assert_eq!(ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!([ms("2026-12-01"), ms("10:00:00"), ms("2026-12-01T10:00:00")], [None; 3]);
        assert_eq!(rfc3339(1_709_222_399_250), "2024-02-29T15:59:59Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in -62_135_596_800..253_402_300_800i64) {
            prop_assert_eq!(ms(&rfc3339(seconds * 1_000)), Some(seconds * 1_000));
        }
    }
}
